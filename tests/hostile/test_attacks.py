"""During every attack small requests are answered soon, and memory stays bounded and returns.

The terminal summary has a table of the measurements (tests/conftest.py). `make hostile` runs the long form.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest

from support.hostile import body_attacks, edge_attacks, text_attacks
from support.hostile.attack import Attack, Report
from support.hostile.probe import KINDS, Sample
from support.hostile.scale import (
    ALLOWED_S,
    ANSWER_S,
    BYTES_MULTIPLE,
    LONG,
    MEDIAN_S,
    MIB,
    NOISE,
    REST_S,
    REST_SHARE,
    SUM_SHARE,
)
from support.hostile.targets import Observed
from support.hostile.wire import Answer
from support.waiting import eventually

ALL = [*edge_attacks.ATTACKS, *body_attacks.ATTACKS, *text_attacks.ATTACKS]
ATTACKS = [attack for attack in ALL if LONG or attack.quick]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack(attack: Attack, observed: Observed, record_property: Callable[[str, Any], None]) -> None:
    before, start = observed.probe.memory(), time.monotonic()
    report = attack.run(observed.server.port)
    end = time.monotonic()
    caught_up = eventually(lambda: observed.probe.caught_up(end), ALLOWED_S)
    assert observed.server.process.poll() is None, observed.server.log[-3000:]
    assert caught_up, f"no answers within {ALLOWED_S} s after the attack; so far {dict(report.answers)}"
    allowed = REST_SHARE * max(before, observed.rest)
    at_rest = eventually(lambda: observed.probe.memory() <= allowed, REST_S)
    samples = observed.probe.samples_of(start, time.monotonic())
    during = [sample for sample in samples if sample.at <= end]
    row = {
        "attack": attack.name,
        "held_mib": report.held / MIB,
        **latencies(during),
        "peak_mib": max(s.value for s in samples if s.kind == "memory") / MIB,
        "before_mib": before / MIB,
        "after_mib": observed.probe.memory() / MIB,
        "answers": " ".join(f"{status}×{count}" for status, count in sorted(report.answers.items())),
    }
    record_property("attack", row)
    faults = [*report.faults[:5], *refused(during, attack.refusing), *slow(row)]
    if attack.only and (others := set(report.answers) - set(attack.only)):
        faults.append(f"answers {sorted(others)}, allowed only {attack.only}")
    above = row["peak_mib"] - row["before_mib"]
    if above > BYTES_MULTIPLE * row["held_mib"] + NOISE / MIB:
        faults.append(f"memory rose by {above:.0f} MiB for {row['held_mib']:.0f} MiB of an attack")
    if not at_rest:
        faults.append(f"memory is {row['after_mib']:.0f} MiB after {REST_S} s, allowed {allowed / MIB:.0f}")
    assert not faults, "\n".join([*faults, str(row)])


def latencies(samples: list[Sample]) -> dict[str, float]:
    """Return median and longest time of the probe's requests: the worst of the four kinds."""
    times = [[s.value for s in samples if s.kind == kind] for kind in KINDS]
    return {
        "median_s": max(statistics.median(seconds) for seconds in times),
        "longest_s": max(max(seconds) for seconds in times),
    }


def slow(row: dict[str, Any]) -> list[str]:
    faults = []
    if row["longest_s"] > ANSWER_S:
        faults.append(f"a small request took {row['longest_s']:.2f} s, allowed {ANSWER_S:.2f}")
    if row["median_s"] > MEDIAN_S:
        faults.append(f"small requests took {row['median_s']:.2f} s in the median, allowed {MEDIAN_S:.2f}")
    return faults


def refused(samples: list[Sample], may_refuse: bool) -> list[str]:
    """Return the probe's requests that were not answered properly; health routes must always be."""
    faults = []
    for sample in samples:
        refusal = sample.kind.startswith("score") and (sample.status, sample.code) == (503, "QUEUE_FULL")
        if sample.kind in KINDS and sample.status != 200 and not (may_refuse and refusal):
            faults.append(f"{sample.kind}: {sample.status} {sample.code}")
    return sorted(set(faults))


def test_memory_returns_after_all_attacks(observed: Observed) -> None:
    """Small growth that each attack is allowed must not add up."""
    allowed = SUM_SHARE * observed.rest
    assert eventually(lambda: observed.probe.memory() <= allowed, REST_S), (
        f"memory is {observed.probe.memory() / MIB:.0f} MiB, {observed.rest / MIB:.0f} before the first attack"
    )


def test_a_broken_answer_is_a_fault() -> None:
    """The rules reject what a server must not answer, so that the attacks can fail."""
    report = Report(0, 0, 0)
    for answer in (Answer(500, {}, b"{}"), Answer(400, {}, b"x" * 20_000), Answer(503, {}, b"busy")):
        report.note(answer)
    assert len(report.faults) == 3
