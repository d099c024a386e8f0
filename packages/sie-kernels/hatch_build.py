"""Compile the library when a wheel is built. It is loaded with ctypes, so one wheel serves every Python."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAME = "src/sie_kernels/_library.so"
NEEDS = "sie-kernels needs Linux on x86-64 and GCC 11 or newer. It is optional: sie-server works without it."


class CompiledLibrary(BuildHookInterface):
    """Build `_library.so` with the flags of pyproject.toml; an sdist gets the sources only."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and let the wheel name the system that it is for."""
        system, machine = platform.system(), platform.machine()
        if (system, machine) != ("Linux", "x86_64"):
            self.app.abort(f"{NEEDS} This is {system} on {machine}.")
        if version == "editable":
            out = Path(self.root, NAME)
        else:
            self._room = tempfile.TemporaryDirectory()
            out = Path(self._room.name, "_library.so")
            build_data["force_include"][str(out)] = NAME.removeprefix("src/")
        self._compile(out)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{machine}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the library after it has been written to the wheel."""
        if version != "editable":
            self._room.cleanup()

    def _compile(self, out: Path) -> None:
        compiler = shlex.split(os.environ.get("CC") or "gcc")
        if shutil.which(compiler[0]) is None:
            self.app.abort(
                f"{NEEDS} There is no {compiler[0]}: install it (Debian and Ubuntu: gcc), or set CC."
            )
        command = [
            *compiler,
            *self.config["flags"],
            "-shared",
            "-fPIC",
            "-o",
            str(out),
            *self.config["sources"],
        ]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout, done.stderr, file=sys.stderr)
            self.app.abort(f"{NEEDS} {shlex.join(command)} failed; its output is above.")
