"""The parent's side of a contender's process, with its memory."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import psutil
from bench.workload import ROOT

SAMPLE = 0.05  # seconds between two looks at the memory
SHOWN = 200  # characters of an error


class Failed(Exception):
    """A contender cannot take part. The message is one line with the reason."""


class Worker:
    """A running process. `ask` sends one command and waits for its answer."""

    def __init__(self, label: str, directory: Path, folder: Path, threads: int, log: IO[bytes]) -> None:
        command = [
            sys.executable,
            "-m",
            "bench.table.worker",
            label,
            str(directory),
            str(folder),
            str(threads),
        ]
        quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **quiet},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        self.label, self.peak_mib = label, 0.0

    def send(self, what: str, **arguments: Any) -> None:
        """Send a command without waiting for its answer."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps({"do": what, "with": arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise Failed("its process has ended; see table.log") from None

    def ask(self, what: str, timeout: float = 600, **arguments: Any) -> dict[str, Any]:
        """Send a command and return its answer. Raises Failed after an error, or after `timeout` seconds."""
        self.send(what, **arguments)
        return self.answer(timeout)

    def answer(self, timeout: float = 600) -> dict[str, Any]:
        """Wait for an answer, and measure the resident memory while it waits. Raises Failed."""
        assert self._process.stdout
        end = time.monotonic() + timeout
        peak = 0.0
        while not select.select([self._process.stdout], [], [], SAMPLE)[0]:
            peak = max(peak, self._resident_mib())
            if time.monotonic() > end:
                self.close()
                raise Failed(f"took more than {timeout:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"its process ended with status {self._process.wait()}; see table.log")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            text = " ".join(str(answer["error"]).split())
            raise Failed(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…")
        self.peak_mib = max(self.peak_mib, peak)
        return answer

    def _resident_mib(self) -> float:
        try:
            return float(psutil.Process(self._process.pid).memory_info().rss) / 2**20
        except psutil.Error:
            return 0.0

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()
