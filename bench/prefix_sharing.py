"""The savings from computing a request's common prefix once: a causal reranker with and without, in one run.

    .venv/bin/python bench/prefix_sharing.py [--prefix 60] [--documents 100] [--layers 28] [--hidden 1024]

Random weights in the shape of Qwen3-0.6B by default (speed does not depend on their values); 100 documents of lognormal
length, the same for both. The two variants alternate, and the best time of each counts. Scores are compared as well.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from sie_server.engine.engine import Engine
from sie_server.engine.job import Job, ScoreTexts
from support.checkpoints.cross_encoders import random_text
from support.checkpoints.decoders import make_decoder

QUERY = "how do stars burn hydrogen?"
LIMIT = 512


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prefix", type=int, default=60, help="tokens before the documents, query included")
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = build(Path(folder), args)
        engines = {
            name: Engine(directory, dtype=args.dtype, share_prefix=name == "shared")
            for name in ("whole", "shared")
        }
    rng = random.Random(1)
    texts = [
        random_text(rng, max(1, round(math.exp(rng.gauss(math.log(60), 0.5))))) for _ in range(args.documents)
    ]
    report(engines, texts, args)


def build(directory: Path, args: argparse.Namespace) -> Path:
    """Write a checkpoint whose prompts begin with exactly `args.prefix` common tokens."""
    make_decoder(
        directory,
        "qwen3",
        num_hidden_layers=args.layers,
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=args.hidden // 8,
    )
    write_template(directory, 0)
    base = len(start_of(Engine(directory)))
    if base > args.prefix:
        raise SystemExit(f"--prefix must be at least {base}")
    write_template(directory, args.prefix - base)
    return directory


def write_template(directory: Path, filler: int) -> None:
    """Write a template that begins with `filler` control tokens."""
    (directory / "sie_reranker.yaml").write_text(
        f'positive: "yes"\nnegative: "no"\npieces:\n  - "{"<|endoftext|>" * filler}<|im_start|>user\\n"\n'
        '  - "{query}"\n  - "\\n"\n  - "{document}"\n  - "<|im_end|>\\n<|im_start|>assistant\\n"\n'
    )


def start_of(engine: Engine) -> list[int]:
    """Return the common prefix of two prompts."""
    job = engine.tokenize_score(ScoreTexts(QUERY, ["rain", "stars"], LIMIT))
    return [] if job.prefix is None else job.prefix.ids.tolist()


def report(engines: dict[str, Engine], texts: list[str], args: argparse.Namespace) -> None:
    """Alternate the variants and print their times."""
    best = dict.fromkeys(engines, math.inf)
    jobs: dict[str, Job] = {}
    for _ in range(args.rounds + 1):  # the first round warms up
        for name, engine in engines.items():
            job = engine.tokenize_score(ScoreTexts(QUERY, texts, LIMIT))
            seconds = run(engine, job, args.batch_tokens)
            if name in jobs:
                best[name] = min(best[name], seconds)
            jobs[name] = job
    whole, shared = jobs["whole"], jobs["shared"]
    prefix = len(shared.prefix) if shared.prefix else 0
    apart = max(abs(a - b) for a, b in zip(whole.results, shared.results, strict=True))
    engine = engines["shared"]
    print(
        f"{args.documents} documents, common start {prefix} tokens, {args.layers}×{args.hidden}, "
        f"{str(engine.dtype).removeprefix('torch.')} on {engine.device}, {torch.get_num_threads()} threads"
    )
    print("| | tokens through the model | ms, best |\n|---|---|---|")
    for name, job in jobs.items():
        print(f"| {name} | {job.tokens} | {best[name] * 1e3:.0f} |")
    print(f"| ratio | {whole.tokens / shared.tokens:.2f} | {best['whole'] / best['shared']:.2f} |")
    print(
        f"max |Δ| of the logits: {apart:.2g}, their standard deviation {statistics.stdev(whole.results):.2g}"
    )


def run(engine: Engine, job: Job, batch_tokens: int) -> float:
    """Return the seconds for a job, in batches as the server forms them."""
    start, next_work = time.perf_counter(), 0
    while next_work < len(job.work):
        batch, room = [], batch_tokens
        while next_work < len(job.work) and (not batch or room >= len(job.work[next_work].tokens)):
            batch.append(job.work[next_work])
            room -= len(job.work[next_work].tokens)
            next_work += 1
        for work, result in zip(batch, engine.run(batch), strict=True):
            job.results[work.index] = result
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
