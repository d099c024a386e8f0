"""Which models and adapters to unload when another one needs memory. Pure policy, without threads or a clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Allocation:
    """The memory of one version or adapter; `name` is a label that the caller chooses."""

    name: str
    nbytes: int
    last_use: float  # seconds on any clock
    serving_since: float = 0.0  # on the same clock
    in_use: bool = False  # a request has a lease or waits for one
    pinned: bool = False
    in_transition: bool = False  # loading or draining: its memory cannot be taken now


@dataclass(frozen=True)
class Plan:
    """How to make room. When `fits` is false, nothing can go now, and `drain` names versions in use to drain first."""

    fits: bool
    evict: list[str] = field(default_factory=list)
    drop: list[str] = field(default_factory=list)  # adapters
    drain: list[str] = field(default_factory=list)
    possible: bool = True  # False: the bytes do not fit even after everything else is gone


def make_room(
    allocations: Sequence[Allocation], budget: int, need: int, droppable: Sequence[Allocation] = ()
) -> Plan:
    """Plan how `need` more bytes fit into `budget`.

    Idle versions are evicted first, the least recently used one first. Versions that are in use, pinned or in
    transition stay. Unused `droppable` adapters, whose versions stay, are next. If that is not enough, the plan evicts
    nothing and names the versions in use that have served longest, to be drained.
    """
    missing = _total(allocations) + need - budget
    free = [a for a in allocations if not a.pinned and not a.in_transition]
    idle = sorted((a for a in free if not a.in_use), key=lambda a: a.last_use)
    adapters = sorted((a for a in droppable if not a.in_use), key=lambda a: a.last_use)
    chosen = _enough([*idle, *adapters], missing)
    if chosen is not None:
        evict, drop = ([a.name for a in group if any(a is c for c in chosen)] for group in (idle, adapters))
        return Plan(True, evict, drop)
    busy = sorted((a for a in free if a.in_use), key=lambda a: a.serving_since)
    in_transition = [a for a in allocations if a.in_transition]
    # This memory is free now, or soon without a drain.
    missing -= _total(idle) + _total(adapters) + _total(in_transition)
    drain = _enough(busy, missing)
    if drain is not None:
        return Plan(False, drain=[a.name for a in drain])
    later = _total(a for a in droppable if a.in_use)  # cannot be forced out, but may become free
    return Plan(False, possible=_total(busy) + later >= missing)


def _total(allocations: Iterable[Allocation]) -> int:
    return sum(a.nbytes for a in allocations)


def _enough(candidates: Sequence[Allocation], missing: int) -> list[Allocation] | None:
    """Return the first candidates that together free `missing` bytes, without those that prove unnecessary."""
    chosen: list[Allocation] = []
    for candidate in candidates:
        if missing <= 0:
            break
        chosen.append(candidate)
        missing -= candidate.nbytes
    if missing > 0:
        return None
    for candidate in reversed(chosen[:-1]):
        if missing + candidate.nbytes <= 0:
            chosen.remove(candidate)
            missing += candidate.nbytes
    return chosen


def idle_for(allocations: Sequence[Allocation], now: float, seconds: float) -> list[str]:
    """Return the evictable versions that no request has used for `seconds`."""
    return [
        a.name
        for a in allocations
        if not (a.in_use or a.pinned or a.in_transition) and now - max(a.last_use, a.serving_since) >= seconds
    ]


def longest_unused(allocations: Sequence[Allocation], now: float) -> float:
    """Return for how many seconds the evictable version that is evicted first has not been used; 0: there is none."""
    uses = [a.last_use for a in allocations if not (a.in_use or a.pinned or a.in_transition)]
    return max(0.0, now - min(uses)) if uses else 0.0


def room(allocations: Sequence[Allocation], budget: int, now: float, seconds: float) -> int:
    """Return the bytes that are free or held by evictable versions that no request has used for `seconds`."""
    unused = set(idle_for(allocations, now, seconds))
    return max(0, budget - _total(a for a in allocations if a.name not in unused))
