"""`sie-server serve --ray` on this machine: Ray, its proxy and the replicas, all started by the command."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from support.servers import processes
from support.servers.processes import Server

ADMIN_KEY = "an-admin-key-of-the-tests"
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}


@contextlib.contextmanager
def running(
    folder: Path, models_dir: Path, *args: str, table: str = "", env: dict[str, str] | None = None
) -> Iterator[Server]:
    """Start a cluster, with `table` as the table `[cluster]` of its configuration file, and yield it once ready.

    Inference needs no key, so that the tests of one server run against it.
    """
    file = folder / "cluster.toml"
    file.write_text(f"[cluster]\n{table}")
    temporary = tempfile.mkdtemp(prefix="r")  # short, because the paths of Ray's sockets may have 107 bytes
    settings = {
        "SIE_API_KEYS": f"ops:admin:{ADMIN_KEY}",
        "SIE_OPEN_INFERENCE": "1",
        "RAY_TMPDIR": temporary,
        **(env or {}),
    }
    command = ["--ray", "--config", str(file), "--models-dir", str(models_dir), *args]
    try:
        with processes.single(folder, *command, env=settings) as server:
            yield server
    finally:
        end_all(temporary)
        shutil.rmtree(temporary, ignore_errors=True)


def end_all(temporary: str) -> None:
    """End the processes that a killed cluster has left: those whose RAY_TMPDIR is `temporary`."""
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if one.environ().get("RAY_TMPDIR") == temporary:
                one.kill()


def replicas(server: Server, kind: str) -> list[psutil.Process]:
    """Return the processes of the replicas whose deployment is `kind`."""
    title = f"ServeReplica:sie:{kind}"
    children = psutil.Process(server.process.pid).children(recursive=True)
    return [one for one in children if any(part.startswith(f"ray::{title}") for part in _words(one))]


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return [part.strip() for part in process.cmdline()]
    return []


def kill(process: psutil.Process) -> None:
    """End a process at once."""
    os.kill(process.pid, signal.SIGKILL)
