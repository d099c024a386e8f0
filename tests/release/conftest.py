"""The files of a release, built once. The long form, `make release-test`, installs them in clean environments."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
URL = "https://git.example.com/team/sie"
COMPILES = platform.system() == "Linux" and platform.machine() == "x86_64" and bool(shutil.which("gcc"))
LONG = os.environ.get("SIE_RELEASE") == "long"


def build(out: Path, *options: str) -> None:
    script = ROOT / "scripts/build_release.py"
    done = subprocess.run(
        [sys.executable, str(script), str(out), "--url", URL, *options], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with wheels and sdists; in the long form also the npm tarball."""
    out = tmp_path_factory.mktemp("release") / "dist"
    left_out = {"--without-npm": not LONG, "--without-kernels": not COMPILES}
    build(out, *(option for option, given in left_out.items() if given))
    return out
