"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.gpu.families import fine


def markdown(found: dict[str, Any]) -> str:
    """Return the page of one run."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: dict[str, Any]) -> Iterator[str]:
    card = found["probes"].get("card") or found["device"]
    name = card["name"] if isinstance(card, dict) else card
    yield f"# Engine on {name}"
    yield ""
    yield f"{found['seconds']:.0f} s, torch {found['probes']['packages']['torch']}."
    yield from _probes(found["probes"])
    yield from _families(found["families"])
    yield from _speed(found["speed"])
    if found.get("profile"):
        yield from ("", "## Profile", "", "| operator | ms | calls |", "|---|---|---|")
        for row in found["profile"]:
            yield f"| `{row['operator'][:80]}` | {row['ms']} | {row['calls']} |"


def _probes(probes: dict[str, Any]) -> Iterator[str]:
    yield from ("", "## Machine", "", "| fact | value |", "|---|---|")
    for name, value in probes.items():
        pairs = value.items() if isinstance(value, dict) else [("", value)]
        for part, fact in pairs:
            yield f"| {name} {part} | `{str(fact).replace('|', '/')}` |"


def _families(families: dict[str, Any]) -> Iterator[str]:
    agree = sum(fine(line) for line in families.values())
    yield from (
        "",
        "## Families",
        "",
        f"{agree} of {len(families)} agree with the CPU in fp32 and run in bf16.",
        "",
    )
    yield "| family | fp32 | bf16 | waits for the device at | remark |"
    yield "|---|---|---|---|---|"
    for name, line in families.items():
        numbers = [f"{line[dtype]:.2g}" if dtype in line else "–" for dtype in ("float32", "bfloat16")]
        remark = line.get("error") or ("" if fine(line) else "differs")
        yield f"| {name} | {' | '.join(numbers)} | {line.get('waits') or '–'} | {remark} |".replace("\n", " ")


def _speed(speed: dict[str, Any]) -> Iterator[str]:
    rate = speed["product rate"] / 1e12
    yield from ("", "## Pairs per second", "", f"Product rate of the device in bf16: {rate:.1f} TFLOP/s.", "")
    yield "| model | way | pairs/s | share of the product rate |"
    yield "|---|---|---|---|"
    for shape, row in speed["shapes"].items():
        if "error" in row:
            yield f"| {shape} | {row['error']} | – | – |".replace("\n", " ")
            continue
        for way, figures in row["rows"].items():
            yield f"| {shape} | {way} | {figures['pairs/s']:,} | {figures['share of the product rate']:.1%} |"
        yield f"| {shape} | ours from texts over the fastest of theirs | {row['ratio']} × | |"
