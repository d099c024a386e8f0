"""`sie-server serve --ray`: the application on a Ray cluster, until a signal stops it."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from sie_server import install
from sie_server.api.edge.connections.listening import bind
from sie_server.cluster.environment import separate_ingress
from sie_server.config import ConfigError, ServerConfig

log = logging.getLogger("sie_server.cluster")
APPLICATION = "sie"
CONNECT_S = 10.0
DRAIN_SPARE_S = 5.0  # for the way to the replicas
FOLDER_SETTINGS = {  # of the proxy, whose files would otherwise collide with those of another cluster
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
}
SIGNALS = (signal.SIGTERM, signal.SIGINT)
PORT_SETTINGS = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    # of Serve's own proxy, to which HAProxy sends requests while no ingress replica answers; several clusters can use
    # one port, and would get each other's requests
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)


def serve(config: ServerConfig) -> None:
    """Serve until a signal stops the process.

    Raises:
        ConfigError: Ray is not installed or not reachable, or the configuration does not fit it.
        ServerFailed: the port is in use.
    """
    address = config.ray_address or os.environ.get("RAY_ADDRESS")
    if address is None:
        _separate_proxy()
    app = _imported()
    app.check(config)
    if address is None:
        bind(config.host, config.port).close()  # the proxy would try for minutes
    stop = Stop()
    try:
        with stop.expected():
            _connect(config, address)
            stop.watch()
            _run(app, config, local=address is None)
            stop.wait()
        log.info("stopping: accepted requests are finished first")
        _drain(config.drain_s)
    finally:
        _stop(local=address is None)


def _imported() -> Any:
    try:
        from sie_server.cluster import app
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        raise ConfigError(f"--ray needs Ray; install it with: {install('ray')}") from None
    return app


def _separate_proxy() -> None:
    """Give the proxy a folder and ports of its own, and the ingress replicas ports of their own."""
    # not below TMPDIR, because the path of a socket has at most 107 bytes, of which Ray needs 70
    folder = Path(tempfile.mkdtemp(prefix="sie-", dir="/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, file in FOLDER_SETTINGS.items():
        os.environ.setdefault(name, str(folder / file))
    for name in PORT_SETTINGS:
        os.environ.setdefault(name, str(_free_port()))
    separate_ingress()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _connect(config: ServerConfig, address: str | None) -> None:
    """Start Ray on this machine, or connect to a cluster.

    Raises:
        ConfigError
    """
    import ray

    if address and address != "auto":
        _check_answers(address)
    options: dict[str, Any] = {"address": address} if address else {"include_dashboard": False}
    log.info("connecting to Ray at %s" if address else "starting Ray on this machine%s", address or "")
    try:
        ray.init(
            **options,
            namespace="serve",
            logging_level=logging.WARNING,
            configure_logging=False,
            log_to_driver=True,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        hint = "; a cluster with tokens needs RAY_AUTH_MODE=token and the token here too" if address else ""
        raise ConfigError(f"cannot connect to Ray at {address or 'this machine'}: {reason}{hint}") from None


def _check_answers(address: str) -> None:
    """Check that an address can be connected to, because Ray would try for minutes.

    Raises:
        ConfigError
    """
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise ConfigError(f"--ray-address {address}: expected HOST:PORT of the head node, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        raise ConfigError(
            f"--ray-address {address}: no Ray cluster answers there: {error.strerror or error}; start one with "
            f"`ray start --head --port={port}`"
        ) from None


def _run(app: Any, config: ServerConfig, *, local: bool) -> None:
    from ray import serve as ray_serve

    config = app.with_pools(config)
    _check_resources(app, config, local=local)
    port = config.port or _free_port()
    ray_serve.start(
        proxy_location="HeadOnly" if local or _shared_addresses() else "EveryNode",
        http_options={"host": config.host, "port": port},
    )
    try:
        ray_serve.run(app.application(config), name=APPLICATION, route_prefix="/", blocking=False)
    except RuntimeError as error:
        raise ConfigError(_reason(str(error))) from None
    log.info("listening on http://%s:%d", config.host, port)
    log.info("ready; models: %s", ", ".join(config.model) or "none at start")


def _check_resources(app: Any, config: ServerConfig, *, local: bool) -> None:
    """Check that some machine can hold a replica of each pool, and that all machines can hold the smallest number.

    Raises:
        ConfigError: on this machine, where none will be added.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, pool in config.cluster.pools.items():
        need = app.needs(pool)
        room = sum(_room(node, need) for node in nodes)
        if room >= max(1, pool.min_replicas):
            continue
        wanted = ", ".join(f"{amount:g} {kind}" for kind, amount in need.items())
        have = "; ".join(", ".join(f"{node.get(k, 0):g} {k}" for k in need) for node in nodes)
        message = (
            f"cluster.pools.{name}: {max(1, pool.min_replicas)} replica(s) of {wanted} do not fit the machines, "
            f"which have {have}"
        )
        if local:
            raise ConfigError(f"{message}; lower cpus, gpus or min_replicas")
        log.warning("%s; waiting until Ray adds machines", message)


def _room(node: dict[str, float], need: dict[str, float]) -> int:
    return int(min(node.get(kind, 0) // amount for kind, amount in need.items() if amount))


def _shared_addresses() -> bool:
    """Whether nodes share an address, as several on one machine do; then only one of them can have the port."""
    import ray

    addresses = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    return len(set(addresses)) < len(addresses)


def _reason(message: str) -> str:
    """Return the last line of an error of Serve, which holds the cause below its traceback."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return f"the replicas do not start: {lines[-1] if lines else 'see the log'}"


class Stop:
    """The first SIGTERM or SIGINT raises KeyboardInterrupt in the main thread; later ones change nothing."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    @contextmanager
    def expected(self) -> Iterator[None]:
        """Run a block, which a signal ends without an error."""
        self.watch()
        try:
            yield
        except KeyboardInterrupt:
            return
        except SystemExit as error:  # of Ray's handler, while it connects
            if error.code != signal.SIGTERM:
                raise

    def watch(self) -> None:
        """Handle the signals. Ray has handlers of its own, so call this again after it has connected.

        Its handler of SIGTERM aborts the process after three seconds, in which replicas cannot drain.
        """
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def wait(self) -> None:
        """Wait for the first signal; return at once after it.

        Raises:
            KeyboardInterrupt: it came just now.
        """
        while not self._asked.wait(1.0):
            pass

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._asked.is_set():
            self._asked.set()
            raise KeyboardInterrupt  # the only exception, besides SystemExit, with which Ray's calls end at once


def _drain(seconds: float) -> None:
    """Let the ingress refuse new requests and finish the others. Without the application Serve would answer 404."""
    from ray import serve as ray_serve

    from sie_server.cluster.ingress.ingress import NAME

    try:
        ingress = ray_serve.get_deployment_handle(NAME, APPLICATION)
        ingress._init(_run_router_in_separate_loop=True)  # this thread has no event loop
        ingress.broadcast("drain", seconds).results(timeout_s=seconds + DRAIN_SPARE_S)
    except Exception as error:  # Serve's and Ray's have no common base, and the stop goes on
        log.warning("the ingress cannot finish its requests: %s", " ".join(str(error).split()))


def _stop(*, local: bool) -> None:
    import ray
    from ray import serve as ray_serve

    if not ray.is_initialized():  # or Serve would start Ray
        return
    with suppress(Exception):
        ray_serve.delete(APPLICATION)
        if local:
            ray_serve.shutdown()
    ray.shutdown()
    log.info("stopped")
