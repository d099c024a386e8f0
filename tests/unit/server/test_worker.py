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
from sie_server.serving.device import thread as thread_module
from sie_server.serving.device import worker as worker_module
from sie_server.serving.device.worker import DeviceWorker
from sie_server.serving.metrics import Metrics, RequestTiming
from support.waiting import until


class LengthEngine:
    """Scores a sequence by its length, fails on length 13, and has memory for `memory` tokens."""

    tokens_per_second, overlap = 1000.0, 0

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


async def test_the_running_batch_and_the_queue_are_seconds_of_work(worker: DeviceWorker) -> None:
    assert worker.queued_seconds() == 0
    engine = LengthEngine(batch_tokens=10_000)
    engine.gate.clear()
    first = asyncio.create_task(run(worker, engine, job_of(*[50] * 200)))  # 10 s at the engine's rate
    await until(engine.entered.is_set)
    second = asyncio.create_task(run(worker, engine, job_of(500)))
    await until(lambda: waiting(worker) == 500)
    assert 5 < worker.queued_seconds() - 0.5 < 10
    engine.gate.set()
    await asyncio.gather(first, second)
    assert worker.queued_seconds() == 0


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


def test_a_batch_that_outlasts_the_program_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_module, "JOIN_S", 0.01)
    engine = LengthEngine()
    engine.gate.clear()

    async def interrupted() -> DeviceWorker:
        worker = DeviceWorker(max_queue_tokens=1000, cpu_threads=1, metrics=Metrics())
        running = asyncio.create_task(run(worker, engine, job_of(3)))
        await until(engine.entered.is_set)
        running.cancel()
        await asyncio.to_thread(worker.close)
        return worker

    worker = asyncio.run(interrupted())
    engine.gate.set()
    worker._threads[0].thread.join(10)
    assert engine.batches == [[3]] and not worker._threads[0].thread.is_alive()
    assert "device thread has failed" not in caplog.text


class SpoilingEngine(LengthEngine):
    """A pass that does not fit spoils its thread, as oneDNN does: no later pass in the same thread succeeds."""

    def __init__(self, memory: int) -> None:
        super().__init__(memory)
        self.spoiled: set[threading.Thread] = set()
        self.threads: list[threading.Thread] = []

    def run(self, works: list[Work]) -> list[Any]:
        self.threads.append(thread := threading.current_thread())
        try:
            if thread in self.spoiled:
                raise MemoryError
            return super().run(works)
        except MemoryError:
            self.spoiled.add(thread)
            raise RuntimeError("could not create a primitive") from None


async def test_work_continues_in_a_new_thread_after_a_spoiled_one(worker: DeviceWorker) -> None:
    engine = SpoilingEngine(memory=30)
    assert await run(worker, engine, job_of(20, 20, 20)) == [20, 20, 20]
    assert await run(worker, engine, job_of(7)) == [7]
    assert len(engine.spoiled) == 2  # by three texts and by two
    assert engine.threads[-1] not in engine.spoiled
    await until(lambda: not any(thread.is_alive() for thread in engine.spoiled))


async def test_a_spoiled_thread_costs_only_the_request_that_does_not_fit(worker: DeviceWorker) -> None:
    engine = SpoilingEngine(memory=60)
    engine.gate.clear()
    first = asyncio.create_task(run(worker, engine, job_of(30)))
    await until(engine.entered.is_set)
    others = [asyncio.create_task(run(worker, engine, job_of(n))) for n in (5, 61, 7)]
    await until(lambda: waiting(worker) == 5 + 61 + 7)
    engine.gate.set()
    done = await asyncio.gather(first, *others, return_exceptions=True)
    assert isinstance(done.pop(2), ResourceExhausted)
    assert done == [[30], [5], [7]]
    assert await run(worker, engine, job_of(8)) == [8]


async def test_without_room_for_a_thread_requests_are_refused_until_there_is(
    worker: DeviceWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, room = SpoilingEngine(memory=30), [False]
    monkeypatch.setattr(thread_module, "room_for_threads", lambda count: room[0])
    monkeypatch.setattr(thread_module, "TEST_EVERY_S", 0.01)
    for length in (31, 5, 5):
        with pytest.raises(ResourceExhausted) as caught:
            await run(worker, engine, job_of(length))
        assert caught.value.retry_after_s
    room[0] = True
    await until(lambda: not any(thread.is_alive() for thread in engine.spoiled))
    assert await run(worker, engine, job_of(5)) == [5]


async def test_a_call_that_spoils_the_thread_is_its_last_one(worker: DeviceWorker) -> None:
    engine = SpoilingEngine(memory=30)
    with pytest.raises(RuntimeError, match="primitive"):
        await worker.call(lambda: engine.run(job_of(31).work))
    assert await run(worker, engine, job_of(5)) == [5]
