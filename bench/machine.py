"""The machine a measurement was taken on, and who else was using it meanwhile."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

QUIET = 0.15  # cores used by others, up to which a measurement counts as undisturbed


def describe() -> dict[str, Any]:
    """What a reader needs to compare figures with those of another machine."""
    import torch

    from sie_server.engine.device import usable_cores

    flags = _cpuinfo("flags").split()
    return {
        "cpu": _cpuinfo("model name"),
        "cores": usable_cores(),
        "amx_bf16": "amx_bf16" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


class Bystanders:
    """Measures how many cores *other* processes use: a busy neighbour costs OpenMP programs up to ten times.

    `with Bystanders() as others: …`, then read `others.cores`.
    """

    cores = 0.0
    elapsed = 0.0

    def __enter__(self) -> Bystanders:
        self._start = time.perf_counter(), _busy(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        wall, busy, own = self._start
        self.elapsed = max(time.perf_counter() - wall, 1e-9)
        self.cores = max(0.0, (_busy() - busy - (time.process_time() - own)) / self.elapsed)

    @property
    def quiet(self) -> bool:
        return self.cores <= QUIET


@dataclass
class Patience:
    """Seconds a benchmark may spend on turns that others disturbed, and that are therefore taken again."""

    seconds: float

    def again(self, others: Bystanders) -> bool:
        """True if the turn just measured should be repeated: returns when the others have calmed down."""
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
