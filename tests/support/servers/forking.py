"""Starts `sie-server` as a fork of an interpreter that has imported it, which saves two seconds of CPU per process.

The fork runs the module `sie_server` as `python -m` does, with arguments, environment and streams of its own. Output,
signals and exit status are those of the command. Only the start of the interpreter and its imports are not repeated.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

# settings that are read after the imports, so that a fork sees them
LATE = ("SIE_", "HF_", "TRANSFORMERS_", "RAY_")
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["sie_server.api.server", "sie_server.cli"])


def started(
    args: Sequence[str],
    env: Mapping[str, str],
    stdin: Path,
    stdout: Path,
    stderr: Path,
    special: Iterable[str] | None = None,
) -> subprocess.Popen[bytes] | Forked:
    """Start `sie-server` with `args`, which reads the first file and appends to the others.

    With `special` variables that could change the interpreter or its imports, the command itself is started.
    """
    if all(name.startswith(LATE) for name in special or ()):
        return Forked(args, env, stdin, stdout, stderr)
    with stdin.open("rb") as source, stdout.open("ab") as out, stderr.open("ab") as errors:
        command = [sys.executable, "-m", "sie_server", *args]
        return subprocess.Popen(command, stdin=source, stdout=out, stderr=errors, env=env)


class Forked:
    """A process, with the part of the interface of `subprocess.Popen` that tests use."""

    def __init__(
        self, args: Sequence[str], env: Mapping[str, str], stdin: Path, stdout: Path, stderr: Path
    ) -> None:
        work = (list(args), dict(env), Path.cwd(), stdin, stdout, stderr)
        self._process = _context.Process(target=_run, args=work, daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.args, self.pid = args, self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(args: list[str], env: dict[str, str], folder: Path, stdin: Path, stdout: Path, stderr: Path) -> None:
    """Become the command; this is the process that was forked."""
    os.dup2(os.open(stdin, os.O_RDONLY), 0)
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.argv = ["sie_server", *args]
    runpy.run_module("sie_server", run_name="__main__", alter_sys=True)
