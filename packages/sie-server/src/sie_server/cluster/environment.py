"""The variables that Ray and Ray Serve read when they are imported. A variable that is set already stays."""

from __future__ import annotations

import os
import random
import socket
from contextlib import ExitStack, suppress

from sie_server.config import ConfigError

# source: ray/serve/_private/constants.py of Ray 2.60
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # bytes of a call and of its answer; the service has limits of its own, and Serve's are 4 MiB
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
    # a request that an ingress replica has not answered is sent to another one
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "262144",  # bytes of a request that can be sent again
    # a reloaded proxy finishes its requests; the SDK waits for 150 s
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "180",
    # our code and Serve's share an event loop, as in one server; changing threads costs more than a millisecond
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_worker_niceness": "0",  # 15 lets every other program of a machine come before the replicas
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_DEDUP_LOGS": "0",
}
# of the ingress replicas on this machine: the first and the last port that they may take
INGRESS_PORTS = ("RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT", "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT")
PORTS_OF_A_CLUSTER = 100
# above those of Ray's workers, below those that Linux gives to clients
FIRST_PORT, LAST_PORT = 20_000, 32_000
ATTEMPTS = 100
# Seconds for which an ingress replica that ends stays reachable. The proxy of this machine drops it at once; load
# balancers elsewhere need Serve's 30.
DRAINING = ("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "1")


def prepare() -> None:
    """Set the variables, before Ray is imported and for all processes that it starts."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def separate_ingress() -> None:
    """Let the ingress replicas of this machine use ports that no other cluster on it uses.

    Serve gives all clusters the same ports. When a replica ends, another cluster could take its port before the proxy
    has removed it, and would get requests of this one.

    Raises:
        ConfigError: there are not enough ports.
    """
    first = _free_ports(PORTS_OF_A_CLUSTER)
    for name, port in zip(INGRESS_PORTS, (first, first + PORTS_OF_A_CLUSTER - 1), strict=True):
        os.environ.setdefault(name, str(port))
    os.environ.setdefault(*DRAINING)


def _free_ports(count: int) -> int:
    """Return the first of `count` neighbouring ports that are free, chosen at random: clusters may start at once."""
    for _ in range(ATTEMPTS):
        first = random.randrange(FIRST_PORT, LAST_PORT, count)
        with suppress(OSError), ExitStack() as listeners:
            for port in range(first, first + count):
                listeners.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise ConfigError(
        f"--ray needs {count} free ports in a row between {FIRST_PORT} and {LAST_PORT}, and found none; set "
        f"{' and '.join(INGRESS_PORTS)}"
    )
