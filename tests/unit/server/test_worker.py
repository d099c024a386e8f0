"""The device thread: a failing or cancelled request does not affect the others."""

from __future__ import annotations

import asyncio
import threading
import weakref
from typing import Any

import numpy as np
import pytest

from sie_server.engine.job import Job, Work, build_job
from sie_server.errors import InferenceError, QueueFull, ResourceExhausted
from sie_server.models.batch import Tokens
from sie_server.serving.device.worker import DeviceWorker
from sie_server.serving.metrics import Metrics, RequestTiming
from support.waiting import until


class LengthEngine:
    """Scores a sequence by its length, fails on length 13, and has memory for `memory` tokens."""

    tokens_per_second = 1000.0

    def __init__(self, memory: int = 10_000, batch_tokens: int = 100) -> None:
        self.memory, self.batch_tokens = memory, batch_tokens
        self.batches: list[list[int]] = []
        self.entered, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def run(self, works: list[Work]) -> list[Any]:
        self.entered.set()
        self.gate.wait(10)
        lengths = [len(work.tokens) for work in works]
        self.batches.append(lengths)
        if 13 in lengths:
            raise ValueError("unlucky")
        if sum(lengths) > self.memory:
            raise MemoryError
        return lengths


def job_of(*lengths: int) -> Job:
    return build_job(
        ("score",),
        [Tokens(np.full(n, i, np.int32), n) for i, n in enumerate(lengths)],
        [False] * len(lengths),
    )


@pytest.fixture
async def worker() -> Any:
    worker = DeviceWorker(max_queue_tokens=1000, cpu_threads=1, metrics=Metrics())
    yield worker
    await asyncio.to_thread(worker.close)


def waiting(worker: DeviceWorker) -> int:
    """Return the number of tokens in the queue."""
    return worker._queue.tokens_waiting


async def run(worker: DeviceWorker, engine: Any, job: Job) -> list[Any]:
    await worker.run(engine, [job], RequestTiming())
    return job.results


async def test_results_come_back_in_the_order_of_the_request(worker: DeviceWorker) -> None:
    assert await run(worker, LengthEngine(), job_of(3, 90, 1, 50)) == [3, 90, 1, 50]


async def test_only_the_failing_request_fails(worker: DeviceWorker) -> None:
    engine = LengthEngine()
    engine.gate.clear()
    first = asyncio.create_task(run(worker, engine, job_of(99)))
    await until(engine.entered.is_set)  # keep the device busy while the other requests queue up
    others = [asyncio.create_task(run(worker, engine, job_of(n))) for n in (5, 13, 7)]
    await until(lambda: waiting(worker) == 5 + 13 + 7)
    engine.gate.set()
    done = await asyncio.gather(first, *others, return_exceptions=True)
    assert sorted(engine.batches[1]) == [5, 7, 13]  # all three were in one batch
    assert done[0] == [99] and done[1] == [5] and done[3] == [7]
    assert isinstance(done[2], InferenceError)
    assert "unlucky" not in str(done[2])  # internal errors are only logged


async def test_a_batch_that_does_not_fit_is_halved(worker: DeviceWorker) -> None:
    engine = LengthEngine(memory=30)
    assert await run(worker, engine, job_of(20, 20, 20, 20)) == [20, 20, 20, 20]


async def test_a_pass_that_did_not_fit_is_freed_before_its_halves_run(worker: DeviceWorker) -> None:
    class Activations:
        pass

    class HoldingEngine(LengthEngine):
        last: Any = staticmethod(lambda: None)

        def run(self, works: list[Work]) -> list[Any]:
            assert self.last() is None
            held = Activations()
            self.last = weakref.ref(held)
            return super().run(works)

    assert await run(worker, HoldingEngine(memory=30), job_of(20, 20, 20, 20)) == [20, 20, 20, 20]


async def test_a_single_text_that_does_not_fit_is_refused(worker: DeviceWorker) -> None:
    with pytest.raises(ResourceExhausted):
        await run(worker, LengthEngine(memory=30), job_of(40))
    assert await run(worker, LengthEngine(), job_of(4)) == [4]


async def test_a_cancelled_request_leaves_the_queue(worker: DeviceWorker) -> None:
    engine = LengthEngine(batch_tokens=10)
    engine.gate.clear()
    task = asyncio.create_task(run(worker, engine, job_of(*[10] * 50)))
    await until(engine.entered.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    engine.gate.set()
    assert await run(worker, engine, job_of(3)) == [3]
    assert len(engine.batches) <= 3


async def test_a_call_runs_between_batches_and_its_error_is_raised(worker: DeviceWorker) -> None:
    assert await worker.call(lambda: threading.current_thread().name) == "sie-device"
    with pytest.raises(ZeroDivisionError):
        await worker.call(lambda: 1 // 0)


async def test_calls_do_not_delay_batches(worker: DeviceWorker) -> None:
    gate, order = threading.Event(), list[str]()

    class NotingEngine(LengthEngine):
        def run(self, works: list[Work]) -> list[Any]:
            order.append("batch")
            return super().run(works)

    first = asyncio.create_task(worker.call(lambda: gate.wait(30)))
    calls = [asyncio.create_task(worker.call(lambda: order.append("call"))) for _ in range(5)]
    batch = asyncio.create_task(run(worker, NotingEngine(), job_of(4)))
    await until(lambda: len(worker._calls) >= 5 and waiting(worker) == 4)
    gate.set()
    await asyncio.gather(first, *calls, batch)
    assert order.index("batch") <= 1


async def test_a_sequence_without_tokens_is_run(worker: DeviceWorker) -> None:
    assert await asyncio.wait_for(run(worker, LengthEngine(), job_of(0)), 30) == [0]


async def test_a_closed_worker_accepts_nothing(worker: DeviceWorker) -> None:
    await asyncio.to_thread(worker.close)
    with pytest.raises(QueueFull):
        await run(worker, LengthEngine(), job_of(3))
    with pytest.raises(QueueFull):
        await worker.call(lambda: None)


async def test_requests_that_wait_when_the_worker_closes_fail(worker: DeviceWorker) -> None:
    engine = LengthEngine(batch_tokens=10)
    engine.gate.clear()
    running = asyncio.create_task(run(worker, engine, job_of(10)))
    await until(engine.entered.is_set)
    queued = [
        asyncio.create_task(run(worker, engine, job_of(10))),
        asyncio.create_task(worker.call(lambda: None)),
    ]
    await until(lambda: worker._calls and waiting(worker) == 10)
    closing = asyncio.create_task(asyncio.to_thread(worker.close))
    await until(lambda: worker._closed)
    engine.gate.set()
    assert await running == [10]
    await closing
    told = await asyncio.wait_for(asyncio.gather(*queued, return_exceptions=True), 30)
    assert [type(error) for error in told] == [QueueFull, QueueFull]
