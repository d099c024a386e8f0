"""Several device threads: their number, the batches they take from one queue, calls, failures and estimates."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch

from sie_server.config import load_config
from sie_server.engine import device
from sie_server.engine.device import device_threads
from sie_server.engine.job import QUERY, Job, Work, build_job
from sie_server.errors import ConfigError, InferenceError, ModelLoadFailed, QueueFull, ResourceExhausted
from sie_server.models.batch import Prefix, Tokens
from sie_server.serving.device import health as health_module
from sie_server.serving.device import thread as thread_module
from sie_server.serving.device.health import ALSO, LONGEST_GAP_S, MOST_FAILURES, DeviceHealth
from sie_server.serving.device.queue import Demand, Ticket, TokenQueue
from sie_server.serving.device.tickets import PendingTicket
from sie_server.serving.device.worker import DeviceWorker
from sie_server.serving.loading import progress
from sie_server.serving.metrics import Metrics, RequestTiming
from support.waiting import until


def job_of(*lengths: int, query: bool = False, prefix: bool = False) -> Job:
    sequences = [Tokens(np.full(n, i, np.int32), n) for i, n in enumerate(lengths)]
    job = build_job(("score",), sequences, [False] * len(lengths))
    if query:
        job.work.insert(0, Work(Tokens(np.zeros(5, np.int32), 5), QUERY, job))
    if prefix:
        job.prefix = Prefix(np.zeros(4, np.int32))
    return job


class Model:
    batch_tokens, tokens_per_second, overlap = 100, 1000.0, 0


# ── their number ──


@pytest.mark.parametrize(
    ("requested", "threads", "expected"),
    [
        ("auto", 1, 1),
        ("auto", 7, 1),
        ("auto", 8, 2),
        ("auto", 15, 3),
        ("auto", 64, 16),
        (3, 16, 3),
        (16, 16, 16),
    ],
)
def test_auto_is_one_thread_per_four_cores(
    requested: int | str, threads: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "usable_cores", lambda: 64)
    assert device_threads(requested, threads, "cpu") == expected


@pytest.mark.parametrize(
    ("requested", "threads", "message"),
    [
        (5, 4, "5 was requested, but this process may use 4 cores; use at most 4"),
        (2, 1, "may use 1 math thread;"),
    ],
)
def test_more_threads_than_cores_are_refused(
    requested: int, threads: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "usable_cores", lambda: 4)
    with pytest.raises(ConfigError, match=message):
        device_threads(requested, threads, "cpu")


def test_a_gpu_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "pick_device", lambda requested: torch.device("cuda"))
    assert device_threads("auto", 64, "auto") == device_threads(1, 1, "auto") == 1
    with pytest.raises(ConfigError, match="2 was requested, but a GPU has one"):
        device_threads(2, 64, "auto")


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "many", "", 0, -3, True])
def test_a_value_that_is_no_number_of_threads_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"^--device-threads: expected auto or a number of threads, at least 1, got"
    ):
        load_config({"device_threads": value}, {}, None)
    with pytest.raises(ConfigError, match="SIE_DEVICE_THREADS: expected auto or a number"):
        load_config({}, {"SIE_DEVICE_THREADS": str(value)}, None)


def test_numbers_and_auto_are_read_from_every_source() -> None:
    assert load_config({"device_threads": "auto"}, {}, None).device_threads == "auto"
    assert load_config({"device_threads": "4"}, {}, None).device_threads == 4
    assert load_config({}, {"SIE_DEVICE_THREADS": "2"}, None).device_threads == 2


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["score", "--query", "weather", "--offline"]])
def test_a_command_refuses_too_many_threads_in_one_line(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sie_server", *command, "--device-threads", "9999", "--device", "cpu"],
        input="Rain.",
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert done.returncode != 0 and len(lines) == 1 and "Traceback" not in done.stderr
    assert "device_threads: 9999 was requested, but this process may use" in lines[0]


# ── the queue ──


def queue_of(*jobs: Job, threads: int = 2) -> TokenQueue[Ticket]:
    queue: TokenQueue[Ticket] = TokenQueue(10_000, threads)
    for job in jobs:
        queue.admit(Ticket(Model(), job))
    return queue


@pytest.mark.parametrize("kind", [{"query": True}, {"prefix": True}])
def test_works_wait_for_those_whose_results_they_need(kind: dict[str, bool]) -> None:
    job = job_of(90, 91, 92, **kind)
    queue = queue_of(job)
    first = queue.take()
    assert first and not queue and queue.take() is None
    queue.admit(Ticket(model := Model(), other := job_of(50)))
    second = queue.take()
    assert second and second.works[0].job is other and second.tickets[0].model is model
    queue.release(second)
    assert not queue, "another batch has ended"
    if job.prefix:
        job.prefix.layers.append((torch.zeros(1), torch.zeros(1)))
    queue.release(first)
    assert queue and queue.take() and queue.take()


def test_other_jobs_of_a_request_do_not_wait() -> None:
    queue: TokenQueue[Ticket] = TokenQueue(10_000, 2)
    queue.admit(Ticket(Model(), job_of(95, query=True), job_of(95, 96, query=True)))
    batches = [queue.take(), queue.take()]
    assert all(batches) and not queue  # the second one has the query of a job that goes on
    assert batches[0] and batches[1]
    queue.release(batches[0])
    assert not queue
    queue.release(batches[1])
    assert queue


def test_a_large_request_runs_its_query_first_and_alone() -> None:
    queue = queue_of(job_of(50, 40, 30, query=True))
    small = job_of(20, query=True)
    queue.admit(Ticket(model := Model(), small))
    assert model is not queue._tickets[0].model
    first, second = queue.take(), queue.take()
    assert first and second
    assert {len(batch.works) for batch in (first, second)} == {1, 2}, (
        "that of a small one stays with its texts"
    )
    queue.release(first)
    queue.release(second)
    rest = [queue.take(), queue.take()]
    assert [[len(work.tokens) for work in batch.works] for batch in rest if batch] == [[50, 40], [30]]


def test_one_thread_never_waits() -> None:
    queue = queue_of(job_of(90, 91, query=True), threads=1)
    assert queue.take() and queue.take() and not queue.take()


def test_estimates_count_the_threads() -> None:
    model = Model()
    one, four = (TokenQueue[Ticket](10_000, threads) for threads in (1, 4))
    for queue in (one, four):
        queue.admit(Ticket(model, job_of(*[100] * 8)))
    assert (one.seconds_waiting(), four.seconds_waiting()) == (0.8, 0.2)
    assert four.seconds_of(400) == one.seconds_of(400) / 4
    small, large = Demand(model, 50), Demand(model, 800)
    assert TokenQueue[Ticket](10_000, 4).seconds_until_done(small) == 0.05, "a batch is not divided"
    assert TokenQueue[Ticket](10_000, 4).seconds_until_done(large) == 0.2
    assert four.seconds_until_done(large) == pytest.approx(one.seconds_until_done(large) / 4)


async def test_the_time_of_a_request_in_batches_that_overlap_counts_once() -> None:
    ticket = PendingTicket(Model(), [job_of(1)], RequestTiming(), None)  # type: ignore[arg-type]
    parts = [ticket.seconds_in(*span) for span in ((0, 2), (1, 3), (5, 6), (4, 7), (0, 8))]
    assert parts == [2, 1, 1, 2, 2] and sum(parts) == 8


# ── the threads ──


class Meeting(Model):
    """A model whose passes wait until `parties` of them run at once."""

    def __init__(self, parties: int) -> None:
        self.barrier, self.threads = threading.Barrier(parties), set[str]()

    def run(self, works: list[Work]) -> list[Any]:
        self.threads.add(threading.current_thread().name)
        self.barrier.wait(20)
        return [len(work.tokens) for work in works]


class Gated(Model):
    """A model whose passes wait for a gate, and fail on sequences of 13 tokens, or panic on 17."""

    def __init__(self) -> None:
        self.gate, self.running = threading.Event(), 0

    def run(self, works: list[Work]) -> list[Any]:
        lengths = [len(work.tokens) for work in works]
        if 17 in lengths:
            raise SystemError
        if 13 in lengths:
            raise ValueError
        self.running += 1
        assert self.gate.wait(20)
        return lengths


@pytest.fixture
async def worker() -> Any:
    worker = DeviceWorker(10_000, 1, Metrics(), device_threads=3)
    yield worker
    await asyncio.to_thread(worker.close)


async def run(worker: DeviceWorker, engine: Any, *lengths: int) -> list[Any]:
    await worker.run(engine, [job := job_of(*lengths)], RequestTiming())
    return job.results


async def test_one_request_is_spread_over_all_threads(worker: DeviceWorker) -> None:
    engine = Meeting(3)
    assert await run(worker, engine, 70, 71, 72) == [70, 71, 72]
    assert engine.threads == {"sie-device", "sie-device-1", "sie-device-2"}


async def test_calls_run_beside_batches_and_settled_waits_for_them(worker: DeviceWorker) -> None:
    engine = Gated()
    running = [asyncio.create_task(run(worker, engine, 90)) for _ in range(2)]
    await until(lambda: engine.running == 2)
    assert await worker.call(lambda: 7) == 7
    settled = asyncio.create_task(worker.settled())
    assert await worker.call(lambda: 8) == 8
    assert not settled.done()
    assert worker.queued_seconds() > 0
    engine.gate.set()
    await settled
    assert await asyncio.gather(*running) == [[90], [90]]


async def test_a_failing_request_leaves_the_other_threads_alone(worker: DeviceWorker) -> None:
    engine = Gated()
    running = asyncio.create_task(run(worker, engine, 90, 91))
    await until(lambda: engine.running == 2)
    with pytest.raises(InferenceError):
        await run(worker, engine, 13)
    engine.gate.set()
    assert await running == [90, 91]


@pytest.mark.parametrize("busy", [0, 2])
async def test_a_thread_that_dies_ends_all(busy: int) -> None:
    class Panic(Gated):
        def run(self, works: list[Work]) -> list[Any]:
            try:
                return super().run(works)
            except SystemError:
                raise KeyboardInterrupt from None

    deaths: list[Any] = []
    worker, engine = DeviceWorker(10_000, 1, Metrics(), deaths.append, device_threads=3), Panic()
    tasks = [asyncio.create_task(run(worker, engine, 90)) for _ in range(busy)]
    await until(lambda: engine.running == busy)
    tasks.append(asyncio.create_task(run(worker, engine, 17)))
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(each, QueueFull) for each in found) and worker.health.dead
    await until(lambda: len(deaths) == 1)
    engine.gate.set()
    await asyncio.to_thread(worker.close)


async def test_one_stuck_thread_is_found_while_others_work(worker: DeviceWorker) -> None:
    engine, free = Gated(), Gated()
    free.gate.set()
    stuck = asyncio.create_task(run(worker, engine, 90))
    await until(lambda: engine.running == 1)
    before = worker.health.step_s
    for _ in range(5):
        await run(worker, free, 20)
    assert worker.health.step_s > before > 0
    engine.gate.set()
    await stuck
    await until(lambda: worker.health.step_s == 0)


async def test_each_thread_has_its_own_number_of_math_threads() -> None:
    before = torch.get_num_threads()
    workers = [DeviceWorker(1000, count, Metrics()) for count in (1, 2)]
    try:
        for _ in range(2):
            assert [await each.call(torch.get_num_threads) for each in workers] == [1, 2]
    finally:
        for each in workers:
            await asyncio.to_thread(each.close)
        torch.set_num_threads(before)


async def test_a_spoiled_thread_is_replaced_in_its_place(worker: DeviceWorker) -> None:
    class Spoiling(Gated):
        def __init__(self) -> None:
            super().__init__()
            self.spoiled: list[threading.Thread] = []

        def run(self, works: list[Work]) -> list[Any]:
            if len(works) > 1:
                self.spoiled.append(threading.current_thread())
                raise RuntimeError("could not create a primitive")
            return super().run(works)

    engine = Spoiling()
    running = asyncio.create_task(run(worker, engine, 90))
    await until(lambda: engine.running == 1)
    engine.gate.set()
    assert await run(worker, engine, 30, 31) == [30, 31]
    await until(lambda: not any(thread.is_alive() for thread in engine.spoiled))
    assert await running == [90] and len(engine.spoiled) == 1
    assert all(each.thread.is_alive() for each in worker._threads)


class Memory(Model):
    """A sequence of 31 tokens or more spoils its thread, as oneDNN does: no later pass in the same thread succeeds."""

    def __init__(self) -> None:
        self.spoiled, self.trouble = set[int](), None

    __hash__ = object.__hash__

    def run(self, works: list[Work]) -> list[Any]:
        lengths = [len(work.tokens) for work in works]
        if max(lengths) > 30:
            self.spoiled.add(threading.get_ident())
        if threading.get_ident() in self.spoiled:
            raise RuntimeError("could not create a primitive")
        time.sleep(0.002)  # longer than a pass that fails
        return lengths


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Refuse new threads until the list holds True."""
    room = [False]
    monkeypatch.setattr(thread_module, "room_for_threads", lambda count: room[0])
    monkeypatch.setattr(thread_module, "TEST_EVERY_S", 0.01)
    return room


async def test_a_spoiled_thread_without_a_successor_leaves_its_work_to_the_others(
    worker: DeviceWorker, no_room: list[bool]
) -> None:
    engine = Memory()
    for spoiled in (1, 2):
        with pytest.raises(ResourceExhausted):
            await run(worker, engine, 31)
        assert await asyncio.gather(*(run(worker, engine, 5, 6) for _ in range(60))) == [[5, 6]] * 60
        await asyncio.gather(*(worker.call(partial(engine.run, job_of(5).work)) for _ in range(20)))
        await worker.settled()
        assert len(engine.spoiled) == spoiled and worker.health.works
    for _ in range(2):
        with pytest.raises(ResourceExhausted):  # now there is no other
            await run(worker, engine, 31)
    no_room[0] = True
    await until(lambda: not any(thread.spoiled for thread in worker._threads))
    engine.spoiled.clear()  # a new thread may have the number of an old one
    assert await asyncio.gather(*(run(worker, engine, 5) for _ in range(30))) == [[5]] * 30


async def test_a_call_that_spoils_its_thread_leaves_the_work_that_waits_to_the_others(
    worker: DeviceWorker, no_room: list[bool]
) -> None:
    engine = Memory()
    for _ in range(2):
        spoiling = asyncio.create_task(worker.call(partial(engine.run, job_of(31).work)))
        waiting = [asyncio.create_task(run(worker, engine, 5)) for _ in range(20)]
        with pytest.raises(RuntimeError, match="primitive"):
            await spoiling
        assert await asyncio.gather(*waiting) == [[5]] * 20


class Breakable(Model):
    """A model whose passes fail until it is repaired."""

    def __init__(self) -> None:
        self.broken, self.trouble = True, None

    __hash__ = object.__hash__

    def run(self, works: list[Work]) -> list[Any]:
        if self.broken:
            raise ValueError
        return [len(work.tokens) for work in works]


def refuse_broken(engine: Any) -> None:
    if engine.broken:
        raise InferenceError("a text of the server fails")


@pytest.mark.parametrize("threads", [1, 2, 3])
async def test_a_failing_model_is_tested_until_it_works_whichever_thread_has_failed(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (health_module, thread_module):
        monkeypatch.setattr(module, "TEST_EVERY_S", 0.01)
    worker = DeviceWorker(10_000, 1, Metrics(), self_test=cast(Any, refuse_broken), device_threads=threads)
    for _ in range(3):
        engine = Breakable()
        for _ in range(MOST_FAILURES):
            with pytest.raises(InferenceError):
                await run(worker, engine, 5)
        await until(lambda engine=engine: ALSO in (engine.trouble or ""))
        assert not worker.health.works
        engine.broken = False
        await until(lambda: worker.health.works)  # without a request
    await asyncio.to_thread(worker.close)


def test_pauses_of_the_process_are_no_part_of_a_step() -> None:
    now = 0.0
    health = DeviceHealth(lambda: now)
    health.step_begins()
    now = 1000.0  # a frozen container
    assert health.step_s == LONGEST_GAP_S
    health.awake.tick()
    assert health.step_s == LONGEST_GAP_S
    for _ in range(200):
        now += 1.0
        health.awake.tick()
    assert health.step_s == LONGEST_GAP_S + 200
    health.step_begins(1)
    now += 2.0
    assert health.step_s == LONGEST_GAP_S + 202
    health.step_ends()
    assert health.step_s == 2.0


@pytest.mark.parametrize(("pause", "kept"), [(1.0, True), (0.0, False)])
async def test_pauses_of_the_process_are_no_lack_of_progress(
    monkeypatch: pytest.MonkeyPatch, pause: float, kept: bool
) -> None:
    monkeypatch.setattr(progress, "LONGEST_GAP_S", 0.5)

    def pauses() -> None:
        time.sleep(pause)

    async def load() -> int:
        pauses()
        await asyncio.sleep(0.1 if pause else 5)
        return 7

    watched = progress.Progress().watch(load(), "model 'a'", stall_s=0.4)
    if kept:
        assert await watched == 7
    else:
        with pytest.raises(ModelLoadFailed, match=r"made no progress for 0\.4 s"):
            await watched
