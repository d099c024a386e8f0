"""The machine of a measurement, and its use by other processes."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

QUIET = 0.15  # cores; a measurement counts as undisturbed if other processes used at most this


def describe() -> dict[str, Any]:
    """Describe the machine, for comparisons with figures from others."""
    import torch

    from sie_server.engine.device import usable_cores

    found = flags()
    return {
        "cpu": _cpuinfo("model name"),
        "cores": usable_cores(),
        "amx_bf16": "amx_bf16" in found,
        "avx512_bf16": "avx512_bf16" in found,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def flags() -> list[str]:
    """Return the CPU's instruction sets, as Linux names them; empty on other systems."""
    return _cpuinfo("flags").split()


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


class Bystanders:
    """Measures the cores that *other* processes use, which can make OpenMP programs ten times slower.

    `with Bystanders() as others: …`, then read `others.cores`.
    """

    cores = 0.0
    elapsed = 0.0
    own = 0.0  # CPU seconds of this process

    def __enter__(self) -> Bystanders:
        self._start = time.perf_counter(), _busy(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        wall, busy, own = self._start
        self.elapsed = max(time.perf_counter() - wall, 1e-9)
        self.own = time.process_time() - own
        self.cores = max(0.0, (_busy() - busy - self.own) / self.elapsed)

    @property
    def quiet(self) -> bool:
        return self.cores <= QUIET


@dataclass
class Patience:
    """The seconds that a benchmark may spend on disturbed runs and their repetition."""

    seconds: float

    def again(self, others: Bystanders) -> bool:
        """Return whether to repeat the last run, after waiting until other processes are quiet."""
        if others.quiet or self.seconds <= 0:
            return False
        self.seconds -= others.elapsed
        while self.seconds > 0 and not others.quiet:
            with others:
                time.sleep(0.3)
            self.seconds -= others.elapsed
        return True


def _busy() -> float:
    times = psutil.cpu_times()
    names = ("user", "nice", "system", "irq", "softirq", "steal")  # the last three are reported only on Linux
    return float(sum(getattr(times, name, 0.0) for name in names))
