"""Three Ray nodes on this machine: a head without replicas and two workers, each in a network namespace."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import click
import httpx
import psutil
from bench.faults.network import HERE, STOP_WITHIN, Host, hosts

from sie_server.cluster.environment import SETTINGS

GCS_PORT, HTTP_PORT, REDIS_PORT = 6379, 8000, 6390
ADMIN_KEY = secrets.token_hex(16)
POOL, INGRESS = "toy", "ingress"
REPLICAS = 2  # of each deployment
START_WITHIN = 240.0  # seconds; the machine may be shared
STORE_BYTES = "80000000"  # the least that Ray accepts


@dataclass(frozen=True)
class Shape:
    """The size of a cluster."""

    cpus: float = 1.0  # of a worker; 1 has room for one replica of each deployment
    replicas: int = REPLICAS  # of the pool
    redis: bool = False  # Ray's tables outlive the head


@dataclass
class Cluster:
    """A running cluster."""

    head: Host
    workers: list[Host]
    folder: Path
    models_dir: Path
    shape: Shape
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The address of the proxy that clients use: that of the head, if the head is not to be killed."""
        return f"http://{(self.workers[0] if self.shape.redis else self.head).address}:{HTTP_PORT}"

    @property
    def all(self) -> list[Host]:
        return [self.head, *self.workers]

    # ── nodes ──

    def start_head(self) -> None:
        """Start the head, which runs the control of the cluster and no replica."""
        options = ["--head", f"--port={GCS_PORT}", "--num-cpus=0", "--include-dashboard=false"]
        more = {"RAY_REDIS_ADDRESS": f"{HERE}:{REDIS_PORT}"} if self.shape.redis else {}
        # Ray refuses to start where this file names an address that a process of this machine uses, and the workers,
        # which would run on other machines, do
        (self.folder / self.head.name / "ray" / "ray_current_cluster").unlink(missing_ok=True)
        self._start(self.head, options, more)

    def has_head(self) -> bool:
        """Whether the head accepts connections."""
        with suppress(OSError):
            socket.create_connection((self.head.address, GCS_PORT), 1.0).close()
            return True
        return False

    def start_worker(self, host: Host) -> None:
        """Start a worker. Ray waits for the head."""
        self._start(
            host, [f"--address={self.head.address}:{GCS_PORT}", f"--num-cpus={self.shape.cpus:g}"], {}
        )

    def _start(self, host: Host, options: list[str], more: dict[str, str]) -> None:
        ray = str(Path(sys.executable).parent / "ray")
        node = [f"--node-ip-address={host.address}", f"--object-store-memory={STORE_BYTES}", "--block"]
        command = [ray, "start", "--disable-usage-stats", *options, *node]
        self.started.append(host.start(command, self._environment(host) | more, self.log(host)))

    def _environment(self, host: Host) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SIE_", "RAY_"))}
        own = self.folder / host.name  # nodes share this machine's files
        own.mkdir(exist_ok=True)
        return {
            **kept,
            **SETTINGS,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_TMPDIR": str(own),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(own / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(own / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(own),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(own / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(own / "metrics.sock"),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_NUM_THREADS": "1",
        }

    def alive(self) -> set[str]:
        """Return the addresses of the nodes that the head has not given up."""
        script = (
            "import sys; from ray._raylet import GcsClient\n"
            "nodes = GcsClient(address=sys.argv[1]).get_all_node_info().values()\n"
            "print(*(one.node_manager_address for one in nodes if one.state == 0))"
        )
        command = [sys.executable, "-c", script, f"{self.head.address}:{GCS_PORT}"]
        done = subprocess.run(command, env=self._environment(self.head), capture_output=True, text=True)
        if done.returncode:
            raise click.ClickException(f"the head does not answer: {done.stderr.strip()[-500:]}")
        return set(done.stdout.split())

    def log(self, host: Host) -> Path:
        return self.folder / f"{host.name}.log"

    # ── the application ──

    def deploy(self, **changes: str | float) -> None:
        """Deploy the application; with changed options it is replaced without a pause.

        Raises:
            click.ClickException: it does not start.
        """
        file = self.folder / "cluster.toml"
        options = {"models_dir": str(self.models_dir), "batch_tokens": 1, "dtype": "float32", "device": "cpu"}
        options |= {"open_inference": True, "threads": 1, **changes}
        lines = [f"{name} = {_toml(value)}" for name, value in options.items()]
        pool = [f"[cluster.pools.{POOL}]", "cpus = 0.6", f"min_replicas = {self.shape.replicas}"]
        file.write_text("\n".join([*lines, 'model = ["toy/a"]', "[cluster]", "ingress_cpus = 0.4", *pool]))
        command = [sys.executable, "-m", "bench.faults.deploy", f"{self.head.address}:{GCS_PORT}"]
        env = self._environment(self.head) | {"SIE_API_KEYS": f"ops:admin:{ADMIN_KEY}"}
        log = self.folder / "deploy.log"
        process = self.head.start([*command, str(file), str(HTTP_PORT)], env, log)
        if process.wait(START_WITHIN):
            raise click.ClickException(f"the application does not start:\n{log.read_text()[-3000:]}")

    def members(self, deployment: str) -> list[psutil.Process]:
        """Return the processes of the replicas of a deployment on all nodes."""
        return [process for host in self.all for process in host.replicas(deployment)]

    def answering(self) -> set[str]:
        """Return the names of the replicas, of both deployments, whose metrics the cluster shows."""
        with suppress(httpx.HTTPError):
            page = httpx.get(f"{self.url}/metrics", timeout=15).text
            return {
                line.split('replica="')[1].split('"')[0] for line in page.splitlines() if 'replica="' in line
            }
        return set()

    def wait_whole(self, gone: set[str] = frozenset()) -> set[str]:  # type: ignore[assignment]
        """Wait until all replicas answer, none of which is `gone`; return their names.

        Raises:
            click.ClickException: the cluster does not become whole.
        """
        names: set[str] = set()

        def whole() -> bool:
            nonlocal names
            names = self.answering()
            return len(names) == self.shape.replicas + REPLICAS and not names & gone

        wait_for(whole, "all replicas answer", 1.0)
        return names


def wait_for(done: Callable[[], bool], what: str, pause_s: float = 0.5) -> None:
    """Wait until `done`.

    Raises:
        click.ClickException: it took too long.
    """
    end = time.monotonic() + START_WITHIN
    while not done():
        if time.monotonic() > end:
            raise click.ClickException(f"waited {START_WITHIN:.0f} s in vain until {what}")
        time.sleep(pause_s)


def _toml(value: str | float) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else f"{value:g}"


@contextmanager
def running(models_dir: Path, shape: Shape) -> Iterator[Cluster]:
    """Start a cluster with the application, and yield it when all replicas answer."""
    folder = Path(
        tempfile.mkdtemp(prefix="f", dir="/tmp")
    )  # short: the path of a socket has at most 107 bytes
    with hosts("head", "a", "b") as (head, *workers):
        cluster = Cluster(head, workers, folder, models_dir, shape)
        try:
            if shape.redis:
                cluster.started.append(_redis(folder))
            cluster.start_head()
            wait_for(cluster.has_head, "the head listens")  # a worker waits for it only for a short time
            for worker in workers:
                cluster.start_worker(worker)
                # workers that start at once would give their sockets the same names, because they share this machine
                wait_for(lambda: worker.address in cluster.alive(), f"worker {worker.name} has joined")  # noqa: B023
            cluster.deploy()
            cluster.wait_whole()
            yield cluster
        finally:
            for host in cluster.all:
                host.kill()
            for process in cluster.started:
                process.kill()
                process.wait(STOP_WITHIN)
    shutil.rmtree(folder, ignore_errors=True)  # kept after an error, for its logs


def _redis(folder: Path) -> subprocess.Popen[bytes]:
    program = shutil.which("redis-server")
    if program is None:
        raise click.ClickException(
            "the program redis-server is missing; install it, or leave out --scenario head"
        )
    words = ["--bind", HERE, "--port", str(REDIS_PORT), "--save", "", "--protected-mode", "no"]
    with (folder / "redis.log").open("ab") as log:
        return subprocess.Popen([program, *words, "--dir", str(folder)], stdout=log, stderr=log)
