"""How many replicas a pool should have: as many as bring the queued work to a few seconds each."""

from __future__ import annotations

import math
from typing import Any

from ray.serve.config import AutoscalingContext

CALM = 0.5  # part of the target at which one replica fewer would do


def replicas_wanted(current: int, queued_s: float, waiting: float, target_s: float) -> int:
    """Return the number of replicas for `queued_s` seconds of work on all of them together.

    `waiting` requests have no replica yet. One replica more or fewer only with a distance from the target, so that
    noise does not change the number.
    """
    if current == 0:
        return 1 if waiting > 0 else 0
    if queued_s > current * target_s:
        return math.ceil(queued_s / target_s)
    if queued_s < (current - 1) * target_s * CALM or (queued_s == 0 and waiting == 0):
        return current - 1
    return current


class QueuePolicy:
    """The policy of a pool. Serve creates it in its controller and calls it in each round."""

    def __init__(self, target_s: float) -> None:
        """`target_s`: seconds of queued work per replica."""
        self._target_s = target_s

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas, before Serve's limits and delays, and no state."""
        queued = context.aggregated_metrics.get("queued_s", {}) if context.aggregated_metrics else {}
        busy = context.total_num_requests or 0.0
        wanted = replicas_wanted(context.target_num_replicas, sum(queued.values()), busy, self._target_s)
        return wanted, {}
