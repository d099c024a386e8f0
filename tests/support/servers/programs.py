"""Programs that tests run: Node with the TypeScript client, curl, a browser.

Without them the tests that need them are skipped, but never in CI.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from support.servers import processes

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SDK = Path(__file__).parents[3] / "packages" / "sie-ts-sdk"


def found(what: str, *names: str) -> str:
    """Return the path of the first of these programs that is installed."""
    path = next((path for name in names if (path := shutil.which(name))), None)
    if path is None:
        missing(f"{what} is not installed")
    return str(path)


def missing(message: str) -> None:
    """Skip the test, or fail it in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"{message}, and in CI these tests must run")
    pytest.skip(message)


def run(*command: str, cwd: Path = SDK, env: dict[str, str] | None = None) -> str:
    """Run a command until it ends, and return its output."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**processes.environment(cwd), **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@functools.cache
def npm() -> str:
    """Return the path of npm, after building the client and its tests once per run."""
    path = found("npm", "npm")
    major = int(run(found("Node", "node"), "--version").strip("v\n").split(".")[0])
    if major < 20:
        missing(f"Node {major} is older than 20")
    if not (SDK / "node_modules").is_dir():
        missing("packages/sie-ts-sdk has no node_modules (make installs them)")
    _build(path)
    return path


def _build(npm: str) -> None:
    """Build once per run: the workers share the folder that the build writes to."""
    this_run = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"process {os.getpid()}")
    with (SDK / "node_modules" / ".built-by-tests").open("a+") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)
        mark.seek(0)
        if mark.read() != this_run:
            run(npm, "run", "build")
            run(npm, "run", "build:test")
            mark.truncate(0)
            mark.write(this_run)
