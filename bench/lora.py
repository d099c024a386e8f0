"""The cost of adapters: batches with sequences of four LoRA adapters and the base model, compared with the base alone.

    python -m bench.lora                        # both shapes, bf16 where the CPU multiplies it fast
    python -m bench.lora --dtype float32 --rank 16

Each batch contains sequences of all five. Random weights in the shapes of `bench.workload`; adapters on every linear
layer of attention and feed-forward, and on queries and values only, PEFT's default for these families. The variants
alternate batch by batch, so that other processes affect them equally. Prints the percentage of base throughput, from
each batch's median time and from its best time; if the two differ by much, the machine was too busy or the rounds were
too few.

A narrow model in bf16 is limited by memory traffic: its base products are so fast that the second pass over the wide
outputs (projections, feed-forward) and the many thin products take a noticeable part of the time.
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
from bench.machine import describe
from bench.workload import QUERY, SHAPES, Shape, natural_texts, write_checkpoint

from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts, Work
from sie_server.engine.lora.adapter import Adapter

TARGETS = {"all linear": ["query", "key", "value", "dense"], "query, value": ["query", "value"]}
BASE = "none"
GOAL = 0.8


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--shape", "names", multiple=True, type=click.Choice(sorted(SHAPES)), default=sorted(SHAPES))
@click.option("--rank", default=16)
@click.option("--adapters", default=4)
@click.option("--documents", default=200)
@click.option("--batch-tokens", default=4096)
@click.option("--rounds", default=11)
@click.option("--dtype", default="auto")
@click.option("--threads", default=0, help="0: torch's default")
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
    machine = describe()
    fast = [name for name in ("amx_bf16", "avx512_bf16") if machine[name]]
    print(f"{machine['cpu']}, {machine['cores']} cores, {' '.join(fast) or 'no bf16 instructions'}\n")
    print(
        "| shape | dtype | threads | adapters on | base, tokens/s | mixed, tokens/s | % of base | best | goal |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for shape in (SHAPES[name] for name in names):
        with tempfile.TemporaryDirectory() as folder:
            directory = write_checkpoint(shape, Path(folder) / "model")
            engine = Engine(directory, dtype=dtype)
            attached = {
                layers: [
                    engine.attach(write_adapter(directory, Path(folder) / f"{layers} {i}", rank, i, targets))
                    for i in range(adapters)
                ]
                for layers, targets in TARGETS.items()
            }
        texts = natural_texts(documents, shape.median_words)
        sides = {BASE: batches(engine, texts, [None] * (adapters + 1), batch_tokens)}
        for layers, own in attached.items():
            sides[layers] = batches(engine, texts, [None, *own], batch_tokens)
        report(engine, shape, sides, rounds)


def write_adapter(directory: Path, target: Path, rank: int, seed: int, targets: list[str]) -> Path:
    """Write a random adapter for the modules `targets` except the head's, with weights as small as trained ones.

    Large weights would lead to denormal numbers after the activation, which are slow.
    """
    import peft
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(directory)
    config = peft.LoraConfig(r=rank, target_modules=targets, exclude_modules=r".*(pooler|classifier).*")
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
    """Distribute the texts over the adapters, and return batches with sequences of each."""
    jobs = [
        engine.tokenize_score(
            ScoreTexts(QUERY, texts[i :: len(adapters)], engine.max_seq_length), adapter=adapter
        )
        for i, adapter in enumerate(adapters)
    ]
    dealt = list(chain.from_iterable(zip(*(job.work for job in jobs), strict=False)))
    found: list[list[Work]] = [[]]
    for work in dealt:
        if sum(len(w.tokens) for w in found[-1]) + len(work.tokens) > tokens:
            found.append([])
        found[-1].append(work)
    return found


def report(engine: Engine, shape: Shape, sides: dict[str, list[list[Work]]], rounds: int) -> None:
    """Alternate the variants and print a row for each kind of adapter."""
    seconds: dict[str, list[list[float]]] = {side: [[] for _ in work] for side, work in sides.items()}
    for number in range(rounds + 1):
        for place in range(max(map(len, sides.values()))):
            for side, work in sides.items():
                if place < len(work):
                    took = run(engine, work[place])
                    if number > 0:  # the first pass lays out weights
                        seconds[side][place].append(took)
    tokens = sum(len(work.tokens) for batch in sides[BASE] for work in batch)
    usual = {side: tokens / sum(map(statistics.median, times)) for side, times in seconds.items()}
    best = {side: tokens / sum(map(min, times)) for side, times in seconds.items()}
    for side in TARGETS:
        print(
            f"| {shape.name} | {str(engine.dtype).removeprefix('torch.')} | {torch.get_num_threads()} | {side} "
            f"| {usual[BASE]:,.0f} | {usual[side]:,.0f} | {usual[side] / usual[BASE]:.1%} "
            f"| {best[side] / best[BASE]:.1%} | {GOAL:.0%} |",
            flush=True,
        )


def run(engine: Engine, batch: list[Work]) -> float:
    """Return the seconds for a batch."""
    start = time.perf_counter()
    engine.run(batch)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
