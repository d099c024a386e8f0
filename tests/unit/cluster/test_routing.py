"""Routing: the order of the replicas for a model."""

from __future__ import annotations

from collections import Counter

import pytest

from sie_server.cluster.routing import order as routing
from sie_server.cluster.routing.order import Load, need_of, ranked

pytestmark = pytest.mark.unit
NAMES = [f"replica-{i}" for i in range(3)]
IDLE = [Load(name, loaded=False, queued_s=0.0, open=0) for name in NAMES]


def first(model: str, *loads: Load) -> str:
    return ranked(model, loads, 0.5)[0].name


def test_a_model_keeps_its_replica_and_models_spread_evenly() -> None:
    counts = Counter(first(f"org/model-{i}", *IDLE) for i in range(300))
    assert set(counts) == set(NAMES) and min(counts.values()) > 70
    assert all(first("org/model-1", *IDLE) == first("org/model-1", *reversed(IDLE)) for _ in range(3))


def test_a_replica_that_leaves_moves_only_its_own_models() -> None:
    for model in (f"org/model-{i}" for i in range(100)):
        before = first(model, *IDLE)
        if before != NAMES[0]:
            assert first(model, *IDLE[1:]) == before


def test_loaded_replicas_come_first_and_a_long_queue_spreads_the_model() -> None:
    model = "org/model"
    order = [one.name for one in ranked(model, IDLE, 0.5)]
    last, queue = order[-1], dict.fromkeys(NAMES, 0.0)

    def loads(loaded: set[str]) -> list[Load]:
        return [Load(name, name in loaded, queue[name], open=1) for name in NAMES]

    assert first(model, *loads({last})) == last
    queue[last] = 0.6
    assert first(model, *loads({last})) == order[0]
    queue.update(dict.fromkeys(NAMES, 2.0))
    queue[order[1]] = 1.0
    assert first(model, *loads({last})) == order[1]


def test_of_the_replicas_that_have_the_model_idle_ones_come_first() -> None:
    model = "org/model"
    order = [one.name for one in ranked(model, IDLE, 0.5)]

    def loads(*open_each: int) -> list[Load]:
        return [Load(name, True, 0.01 * n, n) for name, n in zip(order, open_each, strict=True)]

    assert first(model, *loads(0, 0, 0)) == order[0]  # so that a model that cools down leaves the others
    assert first(model, *loads(1, 0, 0)) == order[1]
    assert first(model, *loads(3, 2, 5)) == order[1]


@pytest.mark.parametrize(
    ("stats", "open_now", "queued_s", "open_then"),
    [
        ({}, None, 0.0, 0),
        ({"queued_s": 0.4, "open": 4, "request_s": 0.1}, None, 0.4, 4),
        ({"queued_s": 0.4, "open": 4, "request_s": 0.1}, 6, 0.6, 6),  # two more since
        ({"queued_s": 0.4, "open": 4, "request_s": 0.1}, 1, 0.1, 1),  # three are answered
        ({"queued_s": 0.4, "open": 4, "request_s": 0.1}, 0, 0.0, 0),
        ({"queued_s": 0.0, "open": 0, "request_s": 0.1}, 3, 0.3, 3),
    ],
)
def test_a_replicas_figures_follow_the_requests_since(
    stats: dict[str, float], open_now: int | None, queued_s: float, open_then: int
) -> None:
    load = Load.of("r", "m", {**stats, "loaded": ["m"]}, open_now)
    assert (load.queued_s, load.open, load.loaded) == (pytest.approx(queued_s), open_then, True)


def test_a_model_is_loaded_where_it_is_loading_or_where_there_is_room() -> None:
    model = "org/model"
    order = [one.name for one in ranked(model, IDLE, 0.5)]

    def loads(rooms: dict[str, int], loading: str = "", need: int = 2) -> list[Load]:
        stats = {
            name: {"room": room, "loading": [model] if name == loading else []}
            for name, room in rooms.items()
        }
        return [Load.of(name, model, one, 0, need) for name, one in stats.items()]

    everywhere, last = dict.fromkeys(NAMES, 5), {order[0]: 1, order[1]: 0, order[2]: 2}
    assert first(model, *loads(everywhere)) == order[0]
    assert first(model, *loads(last)) == order[2]
    assert first(model, *loads(last, loading=order[1])) == order[1]
    assert first(model, *loads(dict.fromkeys(NAMES, 0))) == order[0]  # a model has to go anyway


def test_a_model_takes_the_place_of_the_one_that_was_not_used_for_longest() -> None:
    model = "org/model"
    order = [one.name for one in ranked(model, IDLE, 0.5)]

    def loads(*unused: float) -> list[Load]:
        return [
            Load.of(name, model, {"room": 0, "unused_s": seconds}, 0, 1)
            for name, seconds in zip(order, unused, strict=True)
        ]

    assert first(model, *loads(3.0, 20.0, 9.0)) == order[1]
    assert first(model, *loads(5.0, 5.0, 5.0)) == order[0]


def test_models_of_equal_size_fill_the_memory_of_all_replicas() -> None:
    """Each of six models is loaded once, however the hash would place them."""
    for number in range(50):
        held: dict[str, dict[str, int]] = {name: {} for name in NAMES}
        for model in (f"org/model-{number}-{i}" for i in range(6)):
            stats = {name: {"loaded": own, "room": 25 - sum(own.values())} for name, own in held.items()}
            need = need_of(model, stats.values())
            chosen = first(model, *(Load.of(name, model, one, 0, need) for name, one in stats.items()))
            held[chosen][model] = 10
        assert [len(own) for own in held.values()] == [2, 2, 2]


def test_the_need_of_a_model_is_its_size_elsewhere_or_that_of_the_largest() -> None:
    reports = [{"loaded": {"a": 5, "b": 9}}, {"loaded": {"a": 6}}, {}]
    assert [need_of(model, reports) for model in ("a", "b", "c")] == [6, 9, 9]
    assert need_of("a", [{}]) == 0


def test_idle_replicas_have_the_model_and_nothing_to_do() -> None:
    order = [one.name for one in ranked("m", IDLE, 0.5)]
    states = {order[0]: (True, 0), order[1]: (True, 1), order[2]: (True, 0)}
    routing.publish(
        "pool", lambda model: [Load(n, ok and model == "m", 0.0, k) for n, (ok, k) in states.items()]
    )
    assert routing.idle("pool", "m") == [order[0], order[2]]
    assert routing.idle("pool", "other") == routing.idle("unknown", "m") == []
