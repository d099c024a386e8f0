"""The switch that puts clusters in the place of the servers that tests start."""

from __future__ import annotations

import os

# Tests that run a command of sie-server in this process must not see the switch, because an unknown SIE_ variable is an
# error. Processes that run tests inherit the other name.
KEPT = "CLUSTERS_IN_TESTS"
if given := os.environ.pop("SIE_TEST_CLUSTER", ""):
    os.environ[KEPT] = given


def clustered() -> bool:
    """Whether SIE_TEST_CLUSTER is set."""
    return replicas() > 0


def replicas() -> int:
    """Return the number of model replicas in each of these clusters, which is the value of the switch."""
    return int(os.environ.get(KEPT) or 0)
