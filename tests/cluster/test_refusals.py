"""What `serve --ray` refuses before it serves: one line with the cause and the next step, and no traceback."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.servers import processes
from support.servers.clusters import ADMIN_KEY

KEYS = {"SIE_API_KEYS": f"ops:admin:{ADMIN_KEY}"}


def refused(folder: Path, *args: str, env: dict[str, str] | None = None) -> str:
    """Return the last line of a start that fails."""
    done = processes.command_line(folder, "serve", "--ray", *args, env=KEYS if env is None else env)
    shown = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in shown, shown
    return shown.strip().splitlines()[-1]


def test_without_the_extra(tmp_path: Path) -> None:
    (tmp_path / "hidden/ray").mkdir(parents=True)
    (tmp_path / "hidden/ray/__init__.py").write_text("raise ImportError('hidden', name='ray')")
    line = refused(
        tmp_path, env={**KEYS, "PYTHONPATH": f"{tmp_path / 'hidden'}:{os.environ.get('PYTHONPATH', '')}"}
    )
    assert "--ray needs Ray; install it with: pip install" in line and "[ray]" in line


@pytest.mark.parametrize("keys", [{}, {"SIE_API_KEYS": "search:infer:a-key-of-a-client-of-the-tests"}])
def test_without_admin_keys(tmp_path: Path, keys: dict[str, str]) -> None:
    line = refused(tmp_path, env=keys)
    assert "--ray needs an API key with the scope admin: set SIE_API_KEYS=ops:admin:KEY" in line


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:9", "no Ray cluster answers there: Connection refused; start one with `ray start --head"),
        ("somewhere", "expected HOST:PORT of the head node, or auto"),
        ("ray://127.0.0.1:10001", "expected HOST:PORT of the head node, or auto"),
    ],
)
def test_an_address_without_a_cluster(tmp_path: Path, address: str, words: str) -> None:
    line = refused(tmp_path, "--ray-address", address)
    assert f"--ray-address {address}" in line and words in line


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = refused(tmp_path, "--host", "127.0.0.1", "--port", str(port))
    assert (
        f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another port with --port" in line
    )


@pytest.fixture
def short() -> Iterator[str]:
    """Return a folder for Ray: the paths of its sockets may have 107 bytes."""
    folder = tempfile.mkdtemp(prefix="r")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("cpus = 999", "cluster.pools.large: 1 replica(s) of 999 CPU do not fit the machines, which have"),
        ("min_replicas = 3\nmax_replicas = 2", "cluster.pools.large.max_replicas: 2 is less than 3"),
        ("cpus = 0", "cluster.pools.large: a replica needs cpus or gpus above 0"),
        ("gpus = 1.5", "cluster.pools.large.gpus: 1.5 is not a whole number"),
        ("cpu = 1", "cpu"),
    ],
)
def test_pools_that_cannot_be(tmp_path: Path, short: str, table: str, words: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"[cluster.pools.large]\n{table}\n")
    assert words in refused(tmp_path, "--config", str(file), "--port", "0", env={**KEYS, "RAY_TMPDIR": short})
