"""The router of a pool, in every ingress replica. Serve's interface for it is alpha in Ray 2.60."""

from __future__ import annotations

import asyncio

from ray.serve._private.common import RunningReplicaInfo
from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.request_router.replica_wrapper import RunningReplica
from ray.serve.request_router import RequestRouter

from sie_server.cluster.routing.order import Load, need_of, publish, ranked
from sie_server.cluster.routing.watch import Watch, WatchedReplica


class ModelRouter(RequestRouter):  # type: ignore[misc]
    """Orders the replicas for each request. A call may name a replica to `prefer` and actors to `avoid`.

    A replica that has become silent gets no calls as long as there is another one.
    """

    def initialize_state(self, pool: str, spread_s: float) -> None:
        """Called by Serve with `request_router_kwargs`."""
        self._spread_s, self._watch = spread_s, Watch()
        self._watching: asyncio.Task[None] | None = None
        publish(pool, lambda model: self._loads(model, list(self.curr_replicas.values())))

    def create_replica_wrapper(self, replica_info: RunningReplicaInfo) -> RunningReplica:
        """Called by Serve, on the event loop of the router, for each new replica."""
        replica = WatchedReplica(replica_info)
        self._watch.add(replica)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch.run(lambda: set(self.curr_replicas)))
        return replica

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
        present = [one for one in candidate_replicas if not one.calls.lost] or candidate_replicas
        candidates = [one for one in present if one.actor_id.hex() not in avoid] or present
        model, preferred = pending_request.metadata.multiplexed_model_id, pending_request.kwargs.get("prefer")
        by_name = {one.replica_id.unique_id: one for one in candidates}
        order = ranked(model, self._loads(model, candidates), self._spread_s)
        order.sort(key=lambda load: load.name != preferred)  # stable
        return [[by_name[load.name]] for load in order]

    def _loads(self, model: str, replicas: list[RunningReplica]) -> list[Load]:
        need, open_now = need_of(model, [one.routing_stats for one in replicas]), self.replica_queue_len_cache
        return [
            Load.of(one.replica_id.unique_id, model, one.routing_stats, open_now.get(one.replica_id), need)
            for one in replicas
        ]
