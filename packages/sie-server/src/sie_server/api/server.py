"""Run the app: bind, serve, and on SIGTERM stop accepting requests, finish the accepted ones and exit with status 0."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn

from sie_server.api.app import create_app
from sie_server.api.edge.connections.edge import Edge
from sie_server.api.edge.connections.protocol import EdgeProtocol
from sie_server.config import ConfigError, ServerConfig
from sie_server.errors import SIEError
from sie_server.serving.loading.loader import LOADING_THREADS

log = logging.getLogger("sie_server.api")
JOIN_S = 0.2
LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")


class ServerFailed(ConfigError):
    """The server cannot start or cannot continue; the message is one line for the user."""


class DrainingServer(uvicorn.Server):
    """uvicorn with signal handlers that drain. Its own handler ends the process by the signal instead of status 0."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.drain)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def drain(self) -> None:
        """Reject new requests and finish accepted ones. A second signal stops at once."""
        self.config.app.state.draining = True  # type: ignore[union-attr]
        self.force_exit = self.should_exit
        self.should_exit = True


def serve(config: ServerConfig) -> None:
    """Serve until a signal stops the process.

    Raises:
        ServerFailed: the port is taken, a model named at start cannot be loaded, or the device thread fails.
    """
    listener = bind(config.host, config.port)
    failures: list[SIEError] = []

    def on_fatal(error: SIEError) -> None:
        failures.append(error)
        server.config.timeout_graceful_shutdown = 1  # the remaining requests can only fail
        server.drain()

    app = create_app(config, on_fatal)
    if config.api_keys is None and config.api_keys_file is None and config.host not in LOCAL_HOSTS:
        log.warning(
            "no API keys are configured: any client that can reach %s can use this server", config.host
        )
    server = DrainingServer(
        uvicorn.Config(app, timeout_graceful_shutdown=max(1, int(config.drain_s)), **http_settings(config))
    )
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
    _leave_what_still_loads(failures)
    if failures:
        raise ServerFailed(failures[0].message)


def http_settings(config: ServerConfig) -> dict[str, Any]:
    """Return the arguments of `uvicorn.Config` for HTTP.

    Raises:
        ConfigError: limits contradict each other.
    """
    return {
        "http": partial(EdgeProtocol, edge=Edge(config)),
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,  # a header must not decide which callers are local (api.edge.gate)
        "timeout_keep_alive": 75,
    }


def _leave_what_still_loads(failures: list[SIEError]) -> None:
    """End the process if a download or load is still running. Python would wait for its thread without a limit.

    With `failures`, the first one is printed, and the exit status is 1.
    """
    busy = [thread for thread in threading.enumerate() if thread.name.startswith(LOADING_THREADS)]
    for thread in busy:
        thread.join(JOIN_S)  # an idle thread ends at once
    if any(thread.is_alive() for thread in busy):
        log.warning("abandoning a download or load that is still running")
        if failures:
            print(f"Error: {failures[0].message}", file=sys.stderr)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1 if failures else 0)


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. It is bound before models load, so that a port in use is reported at once.

    Raises:
        ServerFailed: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)  # several sockets can bind one port, but only one can listen
    except OSError as error:
        listener.close()
        raise ServerFailed(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another port with --port"
        ) from None
    listener.set_inheritable(True)
    return listener
