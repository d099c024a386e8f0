"""The switch that puts clusters in the place of the servers that tests start."""

from __future__ import annotations

import os


def clustered() -> bool:
    """Whether SIE_TEST_CLUSTER is set."""
    return replicas() > 0


def replicas() -> int:
    """Return the number of model replicas in each of these clusters, which is the value of the switch."""
    return int(os.environ.get("SIE_TEST_CLUSTER") or 0)
