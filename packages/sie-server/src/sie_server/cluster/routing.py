"""Which replica serves a request: rendezvous hashing of the model over the replicas, and their queues.

A model stays on the replica that its hash prefers. When the queue there is too long it spreads to the next one, so a
hot model uses all replicas, and a cold one is loaded once. Source of the method: Thaler and Ravishankar, "Using
name-based mappings to increase hit rates" (1998).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.request_router.replica_wrapper import RunningReplica
from ray.serve.request_router import RequestRouter


@dataclass(frozen=True)
class Load:
    """A replica as the router sees it."""

    name: str
    loaded: bool  # the model
    queued_s: float


def preference(model: str, replica: str) -> int:
    """Return a number that orders the replicas for a model, the same in every process."""
    return int.from_bytes(hashlib.blake2b(f"{model}\0{replica}".encode(), digest_size=8).digest())


def ranked(model: str, loads: Sequence[Load], spread_s: float) -> list[Load]:
    """Return the replicas, the best one first.

    First those that have the model and a short queue, then others with a short queue, each in the order of the hash;
    then all others by their queues.
    """

    def place(load: Load) -> tuple[int, float]:
        if load.queued_s < spread_s:
            return (0 if load.loaded else 1), preference(model, load.name)
        return 2, load.queued_s

    return sorted(loads, key=place)


class ModelRouter(RequestRouter):  # type: ignore[misc]
    """The router of a pool, in every ingress replica. Serve's interface for it is alpha in Ray 2.60."""

    def initialize_state(self, spread_s: float = 0.5) -> None:
        """Called by Serve with `request_router_kwargs`."""
        self._spread_s = spread_s

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return the candidates in order, each as a rank of its own."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        avoid = set(pending_request.kwargs.get("avoid", ()))
        candidates = [
            one for one in candidate_replicas if one.actor_id.hex() not in avoid
        ] or candidate_replicas
        model = pending_request.metadata.multiplexed_model_id
        by_name = {one.replica_id.unique_id: one for one in candidates}
        loads = [self._load(name, model, one) for name, one in by_name.items()]
        return [[by_name[load.name]] for load in ranked(model, loads, self._spread_s)]

    def _load(self, name: str, model: str, replica: RunningReplica) -> Load:
        """Return a replica's own figures, which are up to a second old, corrected by the requests sent since."""
        stats: dict[str, Any] = replica.routing_stats
        waiting = self.replica_queue_len_cache.get(replica.replica_id) or 0
        since = max(0, waiting - stats.get("ongoing", 0))
        queued_s = stats.get("queued_s", 0.0) + since * stats.get("request_s", 0.0)
        return Load(name, model in stats.get("loaded", ()), queued_s)
