"""The engine also works on operating systems other than Linux, which these tests simulate."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sie_server.engine import device
from sie_server.engine.device import usable_cores
from sie_server.engine.job import Job, Work, build_job
from sie_server.engine.storage import footprint
from sie_server.models.batch import Tokens
from sie_server.serving.device.worker import DeviceWorker
from sie_server.serving.metrics import Metrics, RequestTiming


@pytest.fixture
def not_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the functions that macOS lacks before Python 3.13."""
    monkeypatch.setattr(device, "cpu_quota", lambda: None)
    for name in ("sched_getaffinity", "process_cpu_count"):
        monkeypatch.delattr(os, name, raising=False)


def test_the_cores_of_this_process_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cpu_quota", lambda: None)
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 9}, raising=False)
    assert usable_cores() == 3
    monkeypatch.setattr(os, "process_cpu_count", lambda: 2, raising=False)
    assert usable_cores() == 2
    monkeypatch.setattr(os, "process_cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.parametrize(
    ("quota", "cores"), [(None, 64), (0.1, 1), (1.0, 1), (2.0, 2), (2.5, 3), (64.0, 64), (96.0, 64)]
)
def test_a_limit_of_cpu_time_counts_as_that_many_cores(
    quota: float | None, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "process_cpu_count", lambda: 64, raising=False)
    monkeypatch.setattr(device, "cpu_quota", lambda: quota)
    assert usable_cores() == cores


@pytest.mark.usefixtures("not_linux")
def test_all_cores_count_if_affinity_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


class LengthEngine:
    """Scores a sequence by its length."""

    batch_tokens, tokens_per_second, overlap = 100, 1000.0, 0

    def run(self, works: list[Work]) -> list[Any]:
        return [len(work.tokens) for work in works]


@pytest.mark.usefixtures("not_linux")
async def test_the_device_thread_runs_jobs_if_affinity_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(device.torch, "set_num_threads", threads.append)
    worker = DeviceWorker(max_queue_tokens=1000, cpu_threads=0, metrics=Metrics())
    try:
        job = _job(4, 2)
        await asyncio.wait_for(worker.run(LengthEngine(), [job], RequestTiming()), 10)  # type: ignore[arg-type]
    finally:
        await asyncio.to_thread(worker.close)
    assert job.results == [4, 2]
    assert threads == [3]


def _job(*lengths: int) -> Job:
    sequences = [Tokens(torch.full((n,), n, dtype=torch.int32).numpy(), n) for n in lengths]
    return build_job(("score",), sequences, [False] * len(lengths))


def _sysconf(error: Exception) -> Any:
    def sysconf(name: str) -> int:
        raise error

    return sysconf


@pytest.mark.parametrize(
    "sysconf", [_sysconf(ValueError("unrecognized")), _sysconf(OSError()), lambda _: -1, None]
)
def test_a_system_that_does_not_report_its_memory_has_a_budget(
    sysconf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if sysconf is None:
        monkeypatch.delattr(os, "sysconf")
    else:
        monkeypatch.setattr(os, "sysconf", sysconf)
    monkeypatch.setattr(footprint, "memory_limits", list)
    with caplog.at_level(logging.WARNING):
        assert footprint.automatic_budget("cpu") == int(0.7 * footprint.ASSUMED_MEMORY)
    assert "--memory-budget-mb" in caplog.text


@pytest.mark.parametrize("name", ["posix", "nt"])
def test_other_c_libraries_are_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "os", SimpleNamespace(name=name))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    ran = False
    with footprint.freeing():
        ran = True
    assert ran
