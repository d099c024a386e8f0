"""On a device that computes on its own, the next batch is launched before the results of one are waited for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sie_server.engine.job import Job, Work, build_job
from sie_server.errors import InferenceError
from sie_server.models.batch import Tokens
from sie_server.serving.device.isolation import DeviceLost
from sie_server.serving.device.worker import DeviceWorker
from sie_server.serving.metrics import Metrics, RequestTiming
from support.waiting import until


class Flight:
    def __init__(self, finish: Callable[[], list[Any]]) -> None:
        self.finish = finish


class Card:
    """Scores a sequence by its length; launches of length 13 and waits for length 17 fail."""

    batch_tokens, tokens_per_second, overlap = 100, 1000.0, 1

    def __init__(self) -> None:
        self.events: list[str] = []
        self.entered, self.gate = threading.Event(), threading.Event()

    def launch(self, works: list[Work]) -> Flight:
        self.entered.set()
        assert self.gate.wait(10)
        lengths = [len(work.tokens) for work in works]
        self.events.append(f"launch {lengths}")
        if 13 in lengths:
            raise ValueError("unlucky")
        if 19 in lengths:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return Flight(lambda: self._finish(lengths))

    def _finish(self, lengths: list[int]) -> list[Any]:
        self.events.append(f"finish {lengths}")
        if 17 in lengths:
            raise ValueError("unlucky")
        return lengths

    def run(self, works: list[Work]) -> list[Any]:
        lengths = [len(work.tokens) for work in works]
        self.events.append(f"run {lengths}")
        if {13, 17} & set(lengths):
            raise ValueError("unlucky")
        return lengths


def job_of(*lengths: int) -> Job:
    sequences = [Tokens(np.full(n, i, np.int32), n) for i, n in enumerate(lengths)]
    return build_job(("score",), sequences, [False] * len(lengths))


@pytest.fixture
async def worker() -> Any:
    worker = DeviceWorker(max_queue_tokens=1000, cpu_threads=1, metrics=Metrics())
    yield worker
    await asyncio.to_thread(worker.close)


async def at_once(worker: DeviceWorker, card: Card, *jobs: Job) -> list[Any]:
    """Run jobs that all wait when the first one is launched."""

    async def one(job: Job) -> list[Any]:
        await worker.run(card, [job], RequestTiming())  # type: ignore[arg-type]
        return job.results

    first = asyncio.create_task(one(jobs[0]))
    await until(card.entered.is_set)
    others = [asyncio.create_task(one(job)) for job in jobs[1:]]
    await until(lambda: worker._queue.tokens_waiting == sum(job.tokens for job in jobs[1:]))
    card.gate.set()
    return await asyncio.gather(first, *others, return_exceptions=True)


async def test_two_batches_are_under_way(worker: DeviceWorker) -> None:
    card = Card()
    assert await at_once(worker, card, job_of(90), job_of(91), job_of(92)) == [[90], [91], [92]]
    assert card.events == [
        *["launch [90]", "launch [91]", "finish [90]"],
        *["launch [92]", "finish [91]", "finish [92]"],
    ]
    assert worker.queued_seconds() == 0


@pytest.mark.parametrize("bad", [13, 17])
async def test_a_failure_does_not_affect_the_batches_beside_it(worker: DeviceWorker, bad: int) -> None:
    card = Card()
    found = await at_once(worker, card, job_of(90), job_of(bad), job_of(20), job_of(95))
    assert [found[0], found[2], found[3]] == [[90], [20], [95]]
    assert isinstance(found[1], InferenceError)
    assert f"run [{bad}]" in card.events and "run [20]" in card.events
    assert not any("90" in event or "95" in event for event in card.events if event.startswith("run"))


async def test_a_call_waits_for_the_batches_under_way(worker: DeviceWorker) -> None:
    """It may free the model that they use."""
    card = Card()
    running = asyncio.create_task(at_once(worker, card, job_of(90), job_of(91)))
    await until(card.entered.is_set)
    call = asyncio.create_task(worker.call(lambda: card.events.append("call")))
    await asyncio.gather(running, call)
    before = card.events[: card.events.index("call")]
    assert before.count("launch [90]") == before.count("finish [90]") == 1
    assert before.count("launch [91]") == before.count("finish [91]")


async def test_a_lost_device_ends_the_thread(worker: DeviceWorker) -> None:
    card = Card()
    found = await at_once(worker, card, job_of(90), job_of(19))
    assert all(isinstance(one, Exception) and DeviceLost.__name__ in str(one) for one in found)
    assert worker.health.dead
