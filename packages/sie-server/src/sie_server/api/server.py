"""Run the app: bind, serve, and on SIGTERM stop accepting requests, finish the accepted ones and exit with status 0."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn
from starlette.applications import Starlette

from sie_server.api.app import create_app
from sie_server.api.edge.connections.edge import Edge
from sie_server.api.edge.connections.listening import LOCAL_HOSTS, ServerFailed, bind, url_of
from sie_server.api.edge.connections.protocol import EdgeProtocol
from sie_server.config import ServerConfig
from sie_server.engine.device import thread_teams
from sie_server.errors import SIEError
from sie_server.logs import report_end
from sie_server.serving.service import Service

log = logging.getLogger("sie_server.api")
JOIN_S = 0.2
SHOWN_S = 1.0  # /livez reports a failure for so long before the server ends
# A busy event loop hands the interpreter to the device thread after so long. The default of 5 ms, for each of the
# hundreds of operations of a forward pass, would slow the device down tenfold.
SWITCH_S = 0.0005
GRACE_S = 3.0  # after `drain_s`, for the last answers and the end of the service
OWN_THREADS = "sie-"  # names of the server's threads start so


class DrainingServer(uvicorn.Server):
    """uvicorn with signal handlers that drain. Its own handler ends the process by the signal instead of status 0."""

    def __init__(self, config: uvicorn.Config, drain_s: float) -> None:
        super().__init__(config)
        self.drain_s = drain_s
        self._finishing: asyncio.Task[None] | None = None

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

    def drain(self, seconds: float | None = None, failure: str | None = None) -> None:
        """Reject new requests and finish accepted ones, within `drain_s` or `seconds`. A second call stops at once.

        `failure` is why the server ends, if no signal ended it. The server listens until then, so that new requests get
        an answer and health checks see that it is not ready.
        """
        state = self.config.app.state  # type: ignore[union-attr]
        if state.draining:
            self.force_exit = self.should_exit = True
            return
        state.draining = True
        log.info("stopping: accepted requests are finished first")
        limit = self.drain_s if seconds is None else seconds
        end_within(limit + GRACE_S, failure)
        self._finishing = asyncio.create_task(self._finish(limit))

    async def _finish(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (tasks := set(self.server_state.tasks)) and loop.time() < end:
            await asyncio.wait(tasks, timeout=end - loop.time())
        self.should_exit = True


def serve(config: ServerConfig) -> None:
    """Serve until a signal stops the process.

    Raises:
        ConfigError: the device is not available, or cannot have that many device threads.
        ServerFailed: the port is taken, a model named at start cannot be loaded, or the device thread fails.
    """
    sys.setswitchinterval(SWITCH_S)
    thread_teams(config.device_threads, config.threads, config.device)
    listener = bind(config.host, config.port)
    failures: list[SIEError] = []

    def on_fatal(error: SIEError) -> None:
        failures.append(error)
        # the remaining requests can only fail
        asyncio.get_running_loop().call_later(SHOWN_S, server.drain, 1.0, error.message)

    url = url_of(config.host, listener.getsockname()[1])

    def on_ready(models: list[str]) -> None:
        pages = f"{url}/docs" + (f"; playground: {url}" if config.playground else "")
        log.info("ready; models: %s; API page: %s", ", ".join(models) or "none at start", pages)

    app = create_app(config, Service, on_fatal, on_ready)
    log.info("listening on %s; models to load: %s", url, ", ".join(config.model) or "none")
    if config.api_keys is None and config.api_keys_file is None and config.host not in LOCAL_HOSTS:
        log.warning(
            "no API keys are configured: any client that can reach %s can use this server", config.host
        )
    server = DrainingServer(
        # `drain` has waited for the requests before uvicorn does
        uvicorn.Config(timeout_graceful_shutdown=1, **http_settings(config, app)),
        config.drain_s,
    )
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
    log.info("stopped")
    _leave_running_threads(failures)
    if failures:
        raise ServerFailed(failures[0].message)


def http_settings(config: ServerConfig, app: Starlette) -> dict[str, Any]:
    """Return the arguments of `uvicorn.Config` for this app and HTTP.

    Raises:
        ConfigError: limits contradict each other.
    """
    edge = Edge(config, on_error=lambda error: app.state.service.metrics.failed(error))
    return {
        "app": app,
        "http": partial(EdgeProtocol, edge=edge),
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,  # a header must not decide which callers are local (api.edge.gate)
        "timeout_keep_alive": 75,
    }


def end_within(seconds: float, failure: str | None = None) -> None:
    """End the process after `seconds`, even if something hangs that the event loop waits for; `failure` is printed."""

    def end() -> None:
        log.error("the server has not stopped within %.0f s and is ended", seconds)
        if failure:
            report_end(failure)
        _end_process(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _leave_running_threads(failures: list[SIEError]) -> None:
    """End the process if a thread of the server is still busy. Python would wait for it without a limit.

    No caller waits for the work of such a thread. With `failures`, the first one is printed, and the status is 1.
    """
    busy = [thread for thread in threading.enumerate() if thread.name.startswith(OWN_THREADS)]
    for thread in busy:
        thread.join(JOIN_S / max(1, len(busy)))  # an idle thread ends at once
    alive = sorted({thread.name for thread in busy if thread.is_alive()})
    if alive:
        log.warning("abandoning work that is still running: %s", ", ".join(alive))
        if failures:
            report_end(failures[0].message)
        _end_process(1 if failures else 0)


def _end_process(status: int) -> None:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
