"""A server and commands in a bare container: Kubernetes' variables, no home, closed streams, full disks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.servers import hub, processes
from support.waiting import eventually

KUBERNETES = {
    "SIE_SERVICE_HOST": "10.0.0.1",
    "SIE_SERVICE_PORT": "8080",
    "SIE_PORT": "tcp://10.0.0.1:8080",
    "SIE_PORT_8080_TCP": "tcp://10.0.0.1:8080",
    "SIE_PORT_8080_TCP_ADDR": "10.0.0.1",
}
ODD = {
    "HOME": "/proc",
    "LC_ALL": "C",
    "PYTHONIOENCODING": "ascii",
    "TERM": "",
    "COLUMNS": "1",
    "TZ": "No/Where",
}


def test_a_server_in_a_bare_container(tmp_path: Path) -> None:
    """Every line of its log is JSON and names what an operator looks for."""
    env = {**KUBERNETES, **ODD, "SIE_API_KEYS": "web:infer:infer-3f9a27c1d05b"}
    with processes.running(tmp_path, "--log-format", "json", "--model", "sie/mini-en", env=env) as server:
        key = {"authorization": "Bearer infer-3f9a27c1d05b"}
        body = {"query": "Straße", "documents": ["Ätna", "雨"]}
        assert server.post("/v1/rerank", body, headers=key).status_code == 200
        assert server.post("/v1/score/no%0Asuch", body, headers=key).status_code in (400, 404)
        with server.raw() as raw:
            raw.sendall(b"nonsense\r\n\r\n")
            assert b" 400 " in raw.recv(1000)
        assert server.signal_and_wait() == 0
        lines = [json.loads(line) for line in server.log.splitlines()]
    messages = [line["message"] for line in lines]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    [ignored] = [message for message in messages if "Kubernetes" in message]
    assert all(name in ignored for name in KUBERNETES)
    assert f"listening on {server.base_url}; models to load: sie/mini-en" in messages
    pages = f"API page: {server.base_url}/docs; playground: {server.base_url}"
    assert f"ready; models: sie/mini-en; {pages}" in messages
    assert messages[-1] == "stopped"
    access = [line for line in lines if line["logger"] == "sie_server.access"]
    assert (access[0]["route"], access[0]["status"], access[0]["key"]) == ("/v1/rerank", 200, "web")
    assert access[0]["items"] == 2 and access[0]["tokens"] > 2
    assert not any(word in server.log for word in ("Straße", "Stra\\u00dfe", "\\u00c4tna", "infer-3f9a"))


def test_a_failed_start_has_the_form_of_the_log(tmp_path: Path) -> None:
    arguments = ("serve", "--port", "0", "--offline", "--model", "my/own=/no/such", "--log-format", "json")
    done = processes.command_line(tmp_path, *arguments)
    assert done.returncode == 1
    assert done.stderr.count("is not a readable directory") == 1
    last = [json.loads(line) for line in done.stderr.splitlines()][-1]
    assert last["level"] == "critical" and last["message"].startswith("could not load my/own: /no/such is")


@pytest.mark.parametrize(
    "args",
    [("--version",), ("serve", "--prot", "1"), ("serve", "--port", "0", "--offline", "--model", "no/such")],
)
def test_a_forked_command_equals_a_started_one(tmp_path: Path, args: tuple[str, ...]) -> None:
    """Most tests fork the command from an interpreter that has imported it (tests/support/servers/forking.py)."""
    forked = processes.command_line(tmp_path, *args)
    started = processes.command_line(tmp_path, *args, env={"PYTHONHASHSEED": "0"})
    assert isinstance(forked.args, tuple) and started.args[1:3] == ["-m", "sie_server"]
    assert (forked.returncode, forked.stdout) == (started.returncode, started.stdout)
    assert forked.stderr.splitlines()[-1:] == started.stderr.splitlines()[-1:]


def command(tmp_path: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in which `$SIE` is the command."""
    env = processes.environment(tmp_path, {"SIE": f"{sys.executable} -m sie_server"})
    return subprocess.run(
        ["bash", "-c", script], env=env, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_command_whose_output_cannot_be_written_says_so_once(tmp_path: Path) -> None:
    full = command(
        tmp_path, "for c in models --version 'serve --help'; do $SIE $c > /dev/full || echo $?; done"
    )
    assert full.stdout.split() == ["1", "1", "1"]
    assert full.stderr == "Error: cannot write the output: No space left on device\n" * 3


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    left = command(tmp_path, '$SIE models | true; echo "${PIPESTATUS[0]}"')
    assert (left.stdout, left.stderr) == ("141\n", "")
    closed = command(tmp_path, "$SIE score -q rain <&-; $SIE models bge-m3 >&-; echo $?")
    assert (closed.stdout, closed.stderr) == ("0\n", "Error: stdin is closed; name a file\n")


def test_a_cache_that_cannot_be_written_is_reported_once_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "org/model").mkdir(parents=True)
    (tmp_path / "org/model/config.json").write_text("{}")
    with hub.running(tmp_path) as theirs:
        env = {"HF_ENDPOINT": theirs.url, "HF_HOME": "/proc/cache"}
        done = processes.command_line(
            tmp_path, "score", "-q", "rain", "--model", "org/model", env=env, stdin="a"
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(r"stored at '/proc/cache\b.*set HF_HOME", done.stderr)
    assert done.stderr.count("org/model") == done.stderr.count("\n") == 1 and ".." not in done.stderr


def test_process_1_of_a_container_ends_while_it_starts(tmp_path: Path) -> None:
    """The kernel ignores a signal that process 1 does not handle, and the orchestrator would wait until it kills."""
    inside = ["unshare", "--fork", "--pid", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare and the right to make a namespace")
    command = [*inside, sys.executable, "-m", "sie_server", "serve", "--port", "0"]
    with subprocess.Popen(
        command, env=processes.environment(tmp_path), stderr=subprocess.PIPE, text=True
    ) as outer:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")

        def ended() -> bool:
            for child in children.read_text().split() if outer.poll() is None else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGTERM)
            return outer.poll() is not None

        assert eventually(ended, 30)
        assert outer.stderr is not None
        assert (outer.returncode, "listening" in outer.stderr.read()) == (128 + signal.SIGTERM, False)
