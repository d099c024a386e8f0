"""Eviction plans: idle models by last use, never a model in use, pinned or in transition; and memory limits."""

from __future__ import annotations

from typing import Any

import pytest

from sie_server.serving.lifecycle.eviction import Allocation, Plan, idle_for, longest_unused, make_room, room


def allocation(name: str, nbytes: int, last_use: float = 0.0, **more: Any) -> Allocation:
    return Allocation(name, nbytes, last_use, **more)


A, B, C = allocation("a", 40, 3), allocation("b", 40, 1), allocation("c", 20, 2)


@pytest.mark.parametrize(
    ("holding", "need", "evicted"),
    [
        ([], 100, []),
        ([A, B], 20, []),
        ([A, B], 21, ["b"]),
        ([A, B, C], 40, ["b"]),
        ([A, B, C], 60, ["b", "c"]),
        ([A, B, C], 100, ["b", "c", "a"]),
        # evicting `small` alone is not enough, and with `b` evicted it is unnecessary
        ([allocation("small", 5, 0), A, B, C], 35, ["b"]),
    ],
)
def test_only_as_many_least_recently_used_as_needed_are_evicted(
    holding: list[Allocation], need: int, evicted: list[str]
) -> None:
    plan = make_room(holding, 100, need)
    assert plan == Plan(True, evicted)
    assert sum(h.nbytes for h in holding if h.name not in plan.evict) + need <= 100


@pytest.mark.parametrize("kept", ["in_use", "pinned", "in_transition"])
def test_allocations_that_must_stay_are_not_evicted(kept: str) -> None:
    stays = allocation("stays", 40, 0, **{kept: True})
    assert make_room([stays, A], 100, 60) == Plan(True, ["a"])
    plan = make_room([stays, A], 100, 61)
    assert not plan.fits and not plan.evict


def test_models_in_use_are_drained_if_that_frees_enough() -> None:
    first, second = (
        allocation("first", 40, serving_since=1, in_use=True),
        allocation("second", 40, serving_since=2, in_use=True),
    )
    assert make_room([second, first], 100, 60) == Plan(False, drain=["first"])
    assert make_room([second, first], 100, 100) == Plan(False, drain=["first", "second"])
    # c is idle and is evicted later, once the plan fits
    assert make_room([second, first, C], 100, 60) == Plan(False, drain=["first"])
    assert make_room([allocation("loading", 90, in_transition=True)], 100, 60) == Plan(False)


def test_requests_that_never_fit_are_impossible() -> None:
    assert make_room([], 100, 101) == Plan(False, possible=False)
    assert make_room([A, allocation("pin", 50, pinned=True)], 100, 60) == Plan(False, possible=False)


def test_idle_parts_are_evicted_after_all_idle_models() -> None:
    model = allocation("model", 80, pinned=True)
    old, new, used = (
        allocation("old", 20, 1),
        allocation("new", 20, 2),
        allocation("used", 20, 0, in_use=True),
    )
    assert make_room([model, C], 100, 20, [old, new]) == Plan(True, ["c"])
    assert make_room([model, C], 100, 40, [new, old]) == Plan(True, ["c"], ["old"])
    assert make_room([model], 100, 50, [new, old]) == Plan(True, [], ["old", "new"])
    assert make_room([model], 100, 40, [used]) == Plan(False)  # it may become idle soon
    assert make_room([model], 100, 50, [used]) == Plan(False, possible=False)


def test_parts_in_use_do_not_prevent_draining_their_model() -> None:
    """A model that always uses its parts is drained like any other."""
    busy = allocation("busy", 80, serving_since=1, in_use=True)
    parts = [allocation("busy:used", 30, in_use=True), allocation("busy:idle", 10)]
    assert make_room([busy], 100, 30, parts) == Plan(True, [], ["busy:idle"])
    assert make_room([busy], 100, 60, parts) == Plan(False, drain=["busy"])


def test_idle_for_a_while() -> None:
    holding = [
        allocation("old", 1, last_use=10),
        allocation("fresh", 1, last_use=90),
        allocation("new", 1, last_use=10, serving_since=90),
        allocation("used", 1, in_use=True),
        allocation("pinned", 1, pinned=True),
        allocation("loading", 1, in_transition=True),
    ]
    assert idle_for(holding, 100, 60) == ["old"]
    assert idle_for(holding, 69, 60) == []


def test_room_is_what_is_free_or_unused_for_a_while() -> None:
    held = [
        allocation("old", 30, 1),
        allocation("new", 20, 9),
        allocation("old but pinned", 10, 1, pinned=True),
    ]
    assert room(held, 100, now=12.0, seconds=10.0) == 70
    assert room(held, 100, now=12.0, seconds=30.0) == 40
    assert room(held, 50, now=12.0, seconds=30.0) == 0


def test_the_model_that_goes_first_is_the_one_unused_for_longest() -> None:
    held = [allocation("a", 30, 5), allocation("b", 20, 3, in_use=True), allocation("c", 10, 1, pinned=True)]
    assert longest_unused(held, now=12.0) == 7.0
    assert longest_unused(held[1:], now=12.0) == 0.0
