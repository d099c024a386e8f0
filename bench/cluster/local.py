"""A cluster on this machine: a head of Ray, and `serve --ray` on it, stopped and cleaned up at the end."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from bench.local_server import wait_ready

from sie_server.cluster.environment import SETTINGS
from sie_server.cluster.run import FOLDER_SETTINGS, PORT_SETTINGS, _free_port

ADMIN_KEY = "an-admin-key-of-the-benchmark"
# clusters of one machine that share these ports answer for each other
INGRESS_SETTINGS = {
    "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": 0,
    "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": 99,
}
STOP_S = 90.0
HEAD_S = 120.0


@dataclass(frozen=True)
class Cluster:
    """A running cluster."""

    port: int
    command: psutil.Process  # `serve --ray`
    head: psutil.Process  # `ray start --block`
    log: Path
    folder: Path
    started_s: float  # from the start of the command until it was ready

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the cluster."""
        found = [self.command, self.head]
        for parent in (self.command, self.head):
            with contextlib.suppress(psutil.Error):
                found += parent.children(recursive=True)
        return found

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Return the processes of the replicas of a pool, or of `ingress`."""
        title = f"ray::ServeReplica:sie:{deployment}"
        return [one for one in self.processes() if name_of(one).startswith(title)]


@dataclass(frozen=True)
class Memory:
    """Resident MiB of a cluster's processes by kind; memory that processes share counts once (PSS)."""

    by_kind: dict[str, float] = field(default_factory=dict)

    @property
    def of_replicas(self) -> float:
        return sum(mib for kind, mib in self.by_kind.items() if kind.startswith("model replica"))

    @property
    def of_the_rest(self) -> float:
        return sum(self.by_kind.values()) - self.of_replicas


def name_of(process: psutil.Process) -> str:
    """Return the command line of a process; empty: it has ended."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def memory_of(cluster: Cluster) -> Memory:
    """Measure the memory of all processes."""
    found: dict[str, float] = {}
    for process in cluster.processes():
        kind = _kind(name_of(process), process.pid == cluster.command.pid)
        with contextlib.suppress(psutil.Error):
            found[kind] = found.get(kind, 0.0) + process.memory_full_info().pss / 2**20
    return Memory({kind: round(mib) for kind, mib in sorted(found.items(), key=lambda one: -one[1])})


def _kind(name: str, is_command: bool) -> str:
    if is_command:
        return "serve --ray"
    if name.startswith("ray::ServeReplica:sie:ingress"):
        return "ingress replicas"
    if name.startswith("ray::ServeReplica"):
        return "model replicas"
    if name.startswith("ray::"):
        return name.removeprefix("ray::").partition(" ")[0].partition(".")[0]
    known = ("gcs_server", "raylet/raylet", "haproxy", "log_monitor", "dashboard", "runtime_env", "ray start")
    return next((one for one in known if one in name), "other")


@contextlib.contextmanager
def running(
    table: str,
    *flags: str,
    cpus: int = 2,
    module: str = "sie_server",
    settings: Mapping[str, str] | None = None,
    models_dir: Path | None = None,
    top: str = "",
) -> Iterator[Cluster]:
    """Start Ray and the server, yield the cluster once ready, and end all of its processes.

    `table` is the table `[cluster]` of the configuration file, `top` what stands above it. `module` is run instead of
    the server, and `settings` extend the environment.
    """
    folder = Path(
        tempfile.mkdtemp(prefix="sb", dir="/tmp")
    )  # short: the path of a socket has at most 107 bytes
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        environment = _environment(folder, settings or {})
        head, address = _head(folder, environment, cpus, stack)
        file = folder / "cluster.toml"
        file.write_text(f"{top}\n[cluster]\n{table}", encoding="utf-8")
        port, log, began = _free_port(), folder / "server.log", time.perf_counter()
        command = [
            sys.executable,
            "-m",
            module,
            "serve",
            "--ray",
            "--ray-address",
            address,
            "--config",
            str(file),
        ]
        command += ["--models-dir", str(models_dir)] if models_dir else []
        process = _started([*command, "--port", str(port), *flags], environment, log)
        cluster = Cluster(port, psutil.Process(process.pid), psutil.Process(head.pid), log, folder, 0.0)
        stack.callback(_stop, process)
        try:
            wait_ready(cluster.url, process)
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{log.read_text(errors='replace')[-3000:]}") from None
        yield Cluster(port, cluster.command, cluster.head, log, folder, round(time.perf_counter() - began, 1))


def _environment(folder: Path, settings: Mapping[str, str]) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SIE_", "RAY_"))}
    proxy = {name: str(folder / file) for name, file in FOLDER_SETTINGS.items()}
    ports = {name: str(_free_port()) for name in PORT_SETTINGS}
    first = random.randrange(20_000, 31_900, 100)  # of the ingress replicas; other clusters have others
    ports |= {name: str(first + more) for name, more in INGRESS_SETTINGS.items()}
    keys = {"SIE_API_KEYS": f"ops:admin:{ADMIN_KEY}", "SIE_OPEN_INFERENCE": "1", "RAY_TMPDIR": str(folder)}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return {**kept, **SETTINGS, **proxy, **ports, **keys, **token, **settings}


def _head(
    folder: Path, environment: dict[str, str], cpus: int, stack: contextlib.ExitStack
) -> tuple[subprocess.Popen[bytes], str]:
    """Start a head of Ray; it and its processes end with `stack`."""
    port = _free_port()
    ray = str(Path(sys.executable).with_name("ray"))
    options = ["--block", f"--num-cpus={cpus}", f"--port={port}", "--include-dashboard=false"]
    options += [f"--object-store-memory={200 * 2**20}", "--disable-usage-stats"]
    head = _started([ray, "start", "--head", *options], environment, folder / "head.log")
    stack.callback(_stop, head)
    deadline = time.monotonic() + HEAD_S
    while "Ray runtime started" not in (text := (folder / "head.log").read_text(errors="replace")):
        if head.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the head of Ray did not start:\n{text[-2000:]}")
        time.sleep(0.2)
    return head, f"127.0.0.1:{port}"


def _started(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and end what it and its children leave."""
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        for one in [*psutil.wait_procs(children, timeout=5)[1]]:
            with contextlib.suppress(psutil.Error):
                one.kill()
    if process.poll() is None:
        process.kill()
        process.wait()
