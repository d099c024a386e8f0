"""Who gives way to another model or adapter: pure policy over what is held, without threads or a clock of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Held:
    """One version of a model and the memory it holds; `name` is whatever the caller knows it by."""

    name: str
    nbytes: int
    last_use: float  # seconds on any clock
    loaded: float = 0.0  # when it began to serve, on the same clock
    in_use: bool = False  # somebody has a lease on it, or waits for one
    pinned: bool = False
    passing: bool = False  # loading or draining: it neither can be evicted nor will stay as it is


@dataclass(frozen=True)
class Plan:
    """How to make room. Not `fits`: not now; then `drain` names those in use that would have to go first."""

    fits: bool
    evict: list[str] = field(default_factory=list)
    drop: list[str] = field(default_factory=list)  # of the `spare` parts
    drain: list[str] = field(default_factory=list)
    possible: bool = True  # False: not even with everything gone that may go


def make_room(held: Sequence[Held], budget: int, need: int, spare: Sequence[Held] = ()) -> Plan:
    """How `need` bytes more fit into `budget`.

    Idle versions go, the least recently used first; never one that is in use, pinned or passing. Then those of the
    `spare` parts, of versions that stay, that nobody uses. When all that is not enough nothing is evicted yet, and of
    the versions in use the longest loaded are named to be drained.
    """
    missing = _total(held) + need - budget
    free = [h for h in held if not h.pinned and not h.passing]
    idle = sorted((h for h in free if not h.in_use), key=lambda h: h.last_use)
    parts = sorted((h for h in spare if not h.in_use), key=lambda h: h.last_use)
    chosen = _enough([*idle, *parts], missing)
    if chosen is not None:
        evict, drop = ([h.name for h in some if any(h is c for c in chosen)] for some in (idle, parts))
        return Plan(True, evict, drop)
    busy = sorted((h for h in free if h.in_use), key=lambda h: h.loaded)
    missing -= (
        _total(idle) + _total(parts) + sum(h.nbytes for h in held if h.passing)
    )  # go now, or by themselves
    drain = _enough(busy, missing)
    if drain is not None:
        return Plan(False, drain=[h.name for h in drain])
    later = sum(h.nbytes for h in spare if h.in_use)  # nobody can be made to give these up, but they may
    return Plan(False, possible=_total(busy) + later >= missing)


def _total(held: Iterable[Held]) -> int:
    return sum(h.nbytes for h in held)


def _enough(candidates: Sequence[Held], missing: int) -> list[Held] | None:
    """The first candidates that together free `missing` bytes, without those that turn out not to be needed."""
    chosen: list[Held] = []
    for held in candidates:
        if missing <= 0:
            break
        chosen.append(held)
        missing -= held.nbytes
    if missing > 0:
        return None
    for held in reversed(chosen[:-1]):
        if missing + held.nbytes <= 0:
            chosen.remove(held)
            missing += held.nbytes
    return chosen


def idle_for(held: Sequence[Held], now: float, seconds: float) -> list[str]:
    """The versions nobody has used for `seconds`, and that may go."""
    return [
        h.name
        for h in held
        if not (h.in_use or h.pinned or h.passing) and now - max(h.last_use, h.loaded) >= seconds
    ]
