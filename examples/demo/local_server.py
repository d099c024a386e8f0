"""The demo's server: a subprocess on a free port, stopped when the demo ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

START_LIMIT = 60.0  # seconds
STOP_LIMIT = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):  # not listening yet, or 503 while the model loads
        return False


def wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT
    while not is_ready(url):
        died = server.poll() is not None
        if died or time.monotonic() > deadline:
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
            reason = (
                f"ended with code {server.returncode}" if died else f"was not ready after {START_LIMIT:.0f} s"
            )
            sys.exit(f"The server {reason}. The end of its output:\n{tail}")
        time.sleep(0.1)


def stop(server: subprocess.Popen[bytes]) -> int:
    """Stop the server gracefully; kill it after `STOP_LIMIT`."""
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
    try:
        return server.wait(timeout=STOP_LIMIT)
    except subprocess.TimeoutExpired:
        server.kill()
        return server.wait()


@contextmanager
def running_server(console: Console) -> Iterator[str]:
    """Start a server, yield its address when it is ready, and stop it afterwards."""
    port = free_port()
    url, started = f"http://127.0.0.1:{port}", time.monotonic()
    command = [sys.executable, "-m", "sie_server", "serve", "--port", str(port)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as sink:
            server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
        try:
            if not console.is_terminal:  # the spinner needs a terminal
                console.print("Starting the server …")
            with console.status("Starting the server …"):
                wait_until_ready(server, url, log)
            console.print(f"Server ready at {url} after {time.monotonic() - started:.1f} s.")
            yield url
        finally:
            code = stop(server)
    if code != 0:
        sys.exit(f"The server did not stop cleanly: exit code {code}.")
    console.print("Server stopped cleanly (exit code 0).")
