"""Which replica serves a request: rendezvous hashing of the model over the replicas, and their queues.

A model that is used little stays on the replica that its hash prefers. When the queue there is too long it spreads to
the next one, so a hot model uses all replicas, and a cold one is loaded once. Source of the method: Thaler and
Ravishankar, "Using name-based mappings to increase hit rates" (1998).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Load:
    """A replica as the router sees it."""

    name: str
    loaded: bool  # the model
    queued_s: float
    open: int  # requests that the replica has not answered
    loading: bool = False  # the model
    room: bool = True  # for the model, without unloading one that is in use
    unused_s: float = 0.0  # since the last use of the model that would have to go

    @classmethod
    def of(cls, name: str, model: str, stats: Mapping[str, Any], open_now: int | None, need: int = 0) -> Load:
        """Return a replica's own figures, which are up to a second old, corrected by the requests since then.

        `need` is the memory that the model takes.
        """
        reported: int = stats.get("open", 0)
        now = reported if open_now is None else open_now
        left = min(1.0, now / reported) if reported else 1.0
        queued_s = stats.get("queued_s", 0.0) * left + max(0, now - reported) * stats.get("request_s", 0.0)
        room, loading = stats.get("room", need) >= need, model in stats.get("loading", ())
        return cls(
            name, model in stats.get("loaded", ()), queued_s, now, loading, room, stats.get("unused_s", 0.0)
        )

    @property
    def idle(self) -> bool:
        return self.open == 0 and self.queued_s == 0


def preference(model: str, replica: str) -> int:
    """Return a number that orders the replicas for a model, the same in every process."""
    return int.from_bytes(hashlib.blake2b(f"{model}\0{replica}".encode(), digest_size=8).digest())


def ranked(model: str, loads: Sequence[Load], spread_s: float) -> list[Load]:
    """Return the replicas, the best one first.

    First those that have the model and no request, in the order of the hash; then others that have the model and a
    short queue, by their requests; then others with a short queue: where the model is loading, where there is room for
    it, and then where the model that has to go has not been used for longest; then all others by their queues.
    """

    def place(load: Load) -> tuple[int, float, int]:
        by_hash = preference(model, load.name)
        if load.queued_s >= spread_s:
            return 3, load.queued_s, by_hash
        if not load.loaded:
            return 2, 0 if load.loading else 1 if load.room else 2 + 1 / (1 + load.unused_s), by_hash
        return (1, load.open, by_hash) if load.open else (0, 0, by_hash)

    return sorted(loads, key=place)


def need_of(model: str, reports: Iterable[Mapping[str, Any]]) -> int:
    """Return the memory that a model takes: as on another replica, else as the largest model that is loaded."""
    sizes = [report.get("loaded", {}) for report in reports]
    own = [each[model] for each in sizes if model in each]
    return max(own or [size for each in sizes for size in each.values()], default=0)


# ── what the routers of this process know ──

_loads: dict[str, Callable[[str], list[Load]]] = {}


def publish(pool: str, loads_of: Callable[[str], list[Load]]) -> None:
    """Let `idle` ask the router of a pool. `loads_of(model)` may be called from any thread."""
    _loads[pool] = loads_of


def idle(pool: str, model: str) -> list[str]:
    """Return the replicas of a pool that have the model and nothing to do, in the order of the hash."""
    loads = _loads[pool](model) if pool in _loads else []
    found = [load.name for load in loads if load.loaded and load.idle]
    return sorted(found, key=lambda name: preference(model, name))
