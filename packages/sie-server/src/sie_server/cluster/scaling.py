"""How many replicas a pool should have: as many as bring the queued work to a few seconds each, and none always busy.

A queue alone does not show every need: callers that wait for one answer before they send the next request keep a
replica busy with a short queue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ray.serve.config import AutoscalingContext

CALM = 0.5  # part of the target queue at which one replica fewer would do
BUSY = 0.8  # share of time; replicas that are busy for more of it are too few
CALM_BUSY = 0.6  # share of time that one replica fewer may be busy for


@dataclass(frozen=True)
class Need:
    """The work of all replicas of a pool together."""

    queued_s: float = 0.0  # seconds of queued work
    busy: float = 0.0  # sum of the shares of time in which each has computed
    waiting: float = 0.0  # requests that are open, also those without a replica


def replicas_wanted(current: int, need: Need, target_s: float) -> int:
    """Return the number of replicas. One fewer is wanted only with a distance from the limits.

    So noise does not change the number.
    """
    if current == 0:
        return 1 if need.waiting > 0 else 0
    if need.queued_s > current * target_s or need.busy > current * BUSY:
        return max(math.ceil(need.queued_s / target_s), math.ceil(need.busy / BUSY))
    if current == 1:
        return 0 if need == Need() else 1
    calm = need.queued_s < (current - 1) * target_s * CALM and need.busy < (current - 1) * CALM_BUSY
    return current - 1 if calm else current


class QueuePolicy:
    """The policy of a pool. Serve creates it in its controller and calls it in each round."""

    def __init__(self, target_s: float) -> None:
        """`target_s`: seconds of queued work per replica."""
        self._target_s = target_s

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas, before Serve's limits and delays, and no state."""
        reported = context.aggregated_metrics or {}
        queued, busy = (sum(reported.get(name, {}).values()) for name in ("queued_s", "busy"))
        need = Need(queued, busy, context.total_num_requests or 0.0)
        return replicas_wanted(context.target_num_replicas, need, self._target_s), {}
