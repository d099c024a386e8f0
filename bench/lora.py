"""What adapters cost: batches that mix sequences of four LoRA adapters and the base model, against the base alone.

    python -m bench.lora                        # both shapes, bf16 where the CPU multiplies it fast
    python -m bench.lora --dtype float32 --rank 16

Every batch holds sequences of all five. Random weights in the shapes of `bench.workload`, an adapter on every linear
layer of attention and feed-forward. The two sides do the same batches in turn, and the median of the ratios within a
round counts, so that a busy neighbour hits both alike.

What limits a narrow model in bf16: the base products take so little time that writing the changes over the wide outputs
(projections, feed-forward) once more from memory, and some 20 µs per thin product, are a fifth of it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from itertools import chain
from pathlib import Path

import click
import torch
from bench.contenders import quiet_libraries
from bench.workload import QUERY, SHAPES, Shape, natural_texts, write_checkpoint

from sie_server.engine.engine import Engine
from sie_server.engine.job import Work
from sie_server.engine.lora import Adapter

TARGETS = ["query", "key", "value", "dense"]
GOAL = 0.8


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--shape", "names", multiple=True, type=click.Choice(sorted(SHAPES)), default=sorted(SHAPES))
@click.option("--rank", default=16)
@click.option("--adapters", default=4)
@click.option("--documents", default=200)
@click.option("--batch-tokens", default=4096)
@click.option("--rounds", default=11)
@click.option("--dtype", default="auto")
@click.option("--threads", default=0, help="0: as many as torch takes")
def main(
    names: tuple[str, ...],
    rank: int,
    adapters: int,
    documents: int,
    batch_tokens: int,
    rounds: int,
    dtype: str,
    threads: int,
) -> None:
    quiet_libraries()
    if threads:
        torch.set_num_threads(threads)
    print("| shape | dtype | threads | adapters | base, tokens/s | mixed, tokens/s | ratio | goal |")
    print("|---|---|---|---|---|---|---|---|")
    for shape in (SHAPES[name] for name in names):
        with tempfile.TemporaryDirectory() as folder:
            directory = write_checkpoint(shape, Path(folder) / "model")
            engine = Engine(directory, dtype=dtype)
            attached = [
                engine.attach(write_adapter(directory, Path(folder) / str(i), rank, i))
                for i in range(adapters)
            ]
        texts = natural_texts(documents, shape.median_words)
        base = batches(engine, texts, [None] * (adapters + 1), batch_tokens)
        mixed = batches(engine, texts, [None, *attached], batch_tokens)
        report(engine, shape, base, mixed, rounds, adapters)


def write_adapter(directory: Path, target: Path, rank: int, seed: int) -> Path:
    """A random adapter on all linear layers but the head's, as small as a trained one.

    Large weights would not cost more products, but numbers so small after the activation that they are slow.
    """
    import peft
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(directory)
    config = peft.LoraConfig(r=rank, target_modules=TARGETS, exclude_modules=r".*(pooler|classifier).*")
    torch.manual_seed(seed)
    adapter = peft.get_peft_model(model, config)
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapter.save_pretrained(target)
    return target


def batches(
    engine: Engine, texts: list[str], adapters: list[Adapter | None], tokens: int
) -> list[list[Work]]:
    """The texts dealt out to the adapters, in batches that hold a share of each."""
    jobs = [
        engine.tokenize_score(QUERY, texts[i :: len(adapters)], engine.max_seq_length, adapter=adapter)
        for i, adapter in enumerate(adapters)
    ]
    dealt = list(chain.from_iterable(zip(*(job.work for job in jobs), strict=False)))
    found: list[list[Work]] = [[]]
    for work in dealt:
        if sum(len(w.tokens) for w in found[-1]) + len(work.tokens) > tokens:
            found.append([])
        found[-1].append(work)
    return found


def report(
    engine: Engine,
    shape: Shape,
    base: list[list[Work]],
    mixed: list[list[Work]],
    rounds: int,
    adapters: int,
) -> None:
    """Let the two take turns and print their row."""
    run(engine, base), run(engine, mixed)  # the first pass lays out weights
    seconds = [(run(engine, base), run(engine, mixed)) for _ in range(rounds)]
    tokens = sum(len(work.tokens) for batch in base for work in batch)
    alone, together = (tokens / statistics.median(side) for side in zip(*seconds, strict=True))
    ratio = statistics.median(b / m for b, m in seconds)
    print(
        f"| {shape.name} | {str(engine.dtype).removeprefix('torch.')} | {torch.get_num_threads()} | {adapters} "
        f"| {alone:,.0f} | {together:,.0f} | {ratio:.1%} | {GOAL:.0%} |"
    )


def run(engine: Engine, work: list[list[Work]]) -> float:
    """Seconds for all batches."""
    start = time.perf_counter()
    for batch in work:
        engine.run(batch)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
