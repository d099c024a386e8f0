"""Routing: the order of the replicas for a model."""

from __future__ import annotations

from collections import Counter

import pytest

pytest.importorskip("ray")

from sie_server.cluster.routing import Load, ranked

pytestmark = pytest.mark.unit
NAMES = [f"replica-{i}" for i in range(3)]


def first(model: str, *loads: Load) -> str:
    return ranked(model, loads, 0.5)[0].name


def test_a_model_keeps_its_replica_and_models_spread_evenly() -> None:
    idle = [Load(name, loaded=False, queued_s=0.0) for name in NAMES]
    counts = Counter(first(f"org/model-{i}", *idle) for i in range(300))
    assert set(counts) == set(NAMES) and min(counts.values()) > 70
    assert all(first("org/model-1", *idle) == first("org/model-1", *reversed(idle)) for _ in range(3))


def test_a_replica_that_leaves_moves_only_its_own_models() -> None:
    idle = [Load(name, loaded=False, queued_s=0.0) for name in NAMES]
    for model in (f"org/model-{i}" for i in range(100)):
        before = first(model, *idle)
        if before != NAMES[0]:
            assert first(model, *idle[1:]) == before


def test_loaded_replicas_come_first_and_a_long_queue_spreads_the_model() -> None:
    model = "org/model"
    order = [one.name for one in ranked(model, [Load(name, False, 0.0) for name in NAMES], 0.5)]
    last, queue = order[-1], dict.fromkeys(NAMES, 0.0)

    def loads(loaded: set[str]) -> list[Load]:
        return [Load(name, name in loaded, queue[name]) for name in NAMES]

    assert first(model, *loads({last})) == last
    queue[last] = 0.6
    assert first(model, *loads({last})) == order[0]
    queue.update(dict.fromkeys(NAMES, 2.0))
    queue[order[1]] = 1.0
    assert first(model, *loads({last})) == order[1]
