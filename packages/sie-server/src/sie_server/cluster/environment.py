"""The variables that Ray and Ray Serve read when they are imported. A variable that is set already stays."""

from __future__ import annotations

import os

# source: ray/serve/_private/constants.py of Ray 2.60
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # a request that an ingress replica has not answered is sent to another one
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "262144",  # bytes of a request that can be sent again
    # a reloaded proxy finishes its requests; the SDK waits for 150 s
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "180",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_DEDUP_LOGS": "0",
}


def prepare() -> None:
    """Set the variables, before Ray is imported and for all processes that it starts."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
