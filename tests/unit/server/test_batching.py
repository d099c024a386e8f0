"""The batching policy, tested without clock, threads or model."""

from __future__ import annotations

import copy as copying
import random
from dataclasses import dataclass

import numpy as np
import pytest

from sie_server.engine.job import Job, build_job
from sie_server.errors import QueueFull
from sie_server.models.batch import Tokens
from sie_server.serving.device.queue import SLICE_BATCHES, Batch, Demand, Ticket, TokenQueue
from sie_server.wire import Priority


@dataclass(eq=False)
class Model:
    batch_tokens: int = 100
    tokens_per_second: float = 1000.0


def job_of(*lengths: int) -> Job:
    sequences = [Tokens(np.full(n, i, np.int32), n) for i, n in enumerate(lengths)]
    return build_job(("score",), sequences, [False] * len(lengths))


def queue_of(*tickets: Ticket, max_tokens: int = 10_000) -> TokenQueue[Ticket]:
    queue = TokenQueue(max_tokens)
    for ticket in tickets:
        queue.admit(ticket)
    return queue


def copy_of(queue: TokenQueue[Ticket]) -> TokenQueue[Ticket]:
    """Return a queue with the same waiting work, which can be taken from without a change of the original."""
    other = copying.copy(queue)
    other._tickets = [copying.copy(ticket) for ticket in queue._tickets]
    return other


def sizes(batch: Batch | None) -> list[int]:
    assert batch is not None
    return [len(work.tokens) for work in batch.works]


def drain(queue: TokenQueue) -> list[Batch]:
    batches = []
    while batch := queue.take():
        batches.append(batch)
        assert len(batches) < 1000
    return batches


def test_nothing_waits_when_the_device_is_idle() -> None:
    assert sizes(queue_of(Ticket(Model(), job_of(7))).take()) == [7]


def test_a_batch_stays_within_the_budget_and_has_similar_lengths() -> None:
    queue = queue_of(Ticket(Model(), job_of(10, 60, 30, 50, 40)))
    assert [sizes(b) for b in drain(queue)] == [[60], [50, 40], [30, 10]]


def test_every_work_is_handed_out_exactly_once() -> None:
    jobs = [job_of(*range(1, 40)), job_of(5), job_of(*[99] * 7)]
    model = Model()
    batches = drain(queue_of(*(Ticket(model, job) for job in jobs)))
    handed = [work for batch in batches for work in batch.works]
    assert len(handed) == len(set(map(id, handed))) == sum(len(job.work) for job in jobs)
    assert all(sum(sizes(batch)) <= 100 for batch in batches)


def test_a_text_longer_than_the_budget_goes_alone() -> None:
    queue = queue_of(Ticket(Model(), job_of(500, 20)))
    assert [sizes(b) for b in drain(queue)] == [[500], [20]]


def test_requests_share_a_batch() -> None:
    model = Model()
    batch = queue_of(*(Ticket(model, job_of(20)) for _ in range(4))).take()
    assert batch is not None and len(batch.tickets) == 4


def test_models_never_share_a_batch() -> None:
    first, second = Model(), Model()
    batches = drain(
        queue_of(Ticket(first, job_of(10)), Ticket(second, job_of(10)), Ticket(first, job_of(10)))
    )
    assert [(batch.tickets[0].model, len(batch.works)) for batch in batches] == [(first, 2), (second, 1)]


def test_a_small_request_passes_a_bulk_request() -> None:
    model = Model()
    bulk, small = Ticket(model, job_of(*[50] * 100)), Ticket(model, job_of(50))
    queue = queue_of(bulk)
    queue.take()
    queue.admit(small)
    batch = queue.take()
    assert batch is not None and batch.works[0].job in small.jobs


@pytest.mark.parametrize("priority", [None, "bulk"])
def test_a_small_request_waits_for_at_most_one_batch_of_a_bulk_request(priority: Priority | None) -> None:
    model = Model()
    bulk = Ticket(model, job_of(*[50] * 400), priority=priority)
    queue = queue_of(bulk, max_tokens=100_000)
    for _ in range(60):
        queue.take()
        small = Ticket(model, job_of(50))
        queue.admit(small)
        waited = 0
        while not small.exhausted:
            waited += sum(sizes(queue.take()))
        assert waited <= 2 * model.batch_tokens
    assert not bulk.exhausted


def test_a_large_request_may_ask_for_the_interactive_lane() -> None:
    model = Model()
    large, bulk = Ticket(model, job_of(*[50] * 80), priority="interactive"), Ticket(model, job_of(*[50] * 80))
    queue = queue_of(bulk, large, max_tokens=100_000)
    while not large.exhausted:
        queue.take()
    assert bulk.tokens_waiting > 2000  # more than half of it is left


@pytest.mark.parametrize(("priority", "share"), [("interactive", 1 / 2), (None, 1 / (1 + SLICE_BATCHES))])
def test_a_large_request_is_never_starved(priority: Priority | None, share: float) -> None:
    """With one small request always queued, a large request still gets its share of the device."""
    model = Model()
    bulk = Ticket(model, job_of(*[100] * 20), priority=priority)
    small = Ticket(model, job_of(100))
    queue = queue_of(bulk, small)
    work_done = 0
    while not bulk.exhausted:
        if small.exhausted:
            small = Ticket(model, job_of(100))
            queue.admit(small)
        work_done += sum(sizes(queue.take()))
    assert work_done <= 2000 / share + 100


@pytest.mark.parametrize(
    ("waiting", "lengths", "seconds"),
    [
        ([], (100,), 0.1),
        ([(100, 100)], (100,), 0.1),  # the smaller one goes first
        ([(100,)], (100, 100), 0.3),
        ([(100,) * 20], (100,), 0.1),  # a bulk request gives precedence
        ([(100,) * 20], (100,) * 10, 2.0),  # two bulk requests share the device
    ],
)
def test_the_time_until_a_request_is_done_is_estimated(
    waiting: list[tuple[int, ...]], lengths: tuple[int, ...], seconds: float
) -> None:
    model = Model()
    queue = queue_of(*(Ticket(model, job_of(*job)) for job in waiting))
    estimate = queue.seconds_until_done(Demand(model, sum(lengths)))
    assert estimate == pytest.approx(seconds)


def test_the_estimate_is_what_the_device_then_needs() -> None:
    rng = random.Random(1)
    model = Model()
    queue, needed, estimated = queue_of(max_tokens=1_000_000), 0, 0.0
    for _ in range(300):
        job = job_of(*(rng.randint(10, 40) for _ in range(rng.choice([1, 3, 10, 60]))))
        estimate = queue.seconds_until_done(Demand(model, job.tokens)) * model.tokens_per_second
        queue.admit(Ticket(model, job))
        copy, handed = copy_of(queue), 0
        ticket = copy._tickets[-1]
        while not ticket.exhausted:
            handed += sum(sizes(copy.take()))
        # a small job may also fill the rest of an earlier batch
        assert handed <= 1.2 * estimate + 3 * model.batch_tokens
        needed, estimated = needed + handed, estimated + estimate
        for _ in range(rng.randint(0, 8)):
            queue.take()
        assert queue.tokens_waiting == sum(waiting.tokens_waiting for waiting in queue._tickets)
    assert estimated == pytest.approx(needed, rel=0.2)


def test_many_bulk_requests_share_one_lane() -> None:
    model = Model()
    queue = queue_of(*(Ticket(model, job_of(*[50] * 100)) for _ in range(20)), max_tokens=1_000_000)
    for _ in range(30):
        queue.take()
    small = Ticket(model, job_of(50))
    queue.admit(small)
    assert queue.seconds_until_done(Demand(model, 50)) <= 0.2
    waited = 0
    while not small.exhausted:
        waited += sum(sizes(queue.take()))
    assert waited <= 2 * model.batch_tokens


def test_equal_requests_are_first_come_first_served() -> None:
    model = Model()
    tickets = [Ticket(model, job_of(100, 100)) for _ in range(5)]
    order = [batch.works[0].job for batch in drain(queue_of(*tickets))]
    assert order == [job for ticket in tickets for job in ticket.jobs for _ in range(2)]


def test_a_full_queue_refuses_with_a_retry_time() -> None:
    model = Model(tokens_per_second=100.0)
    queue = queue_of(Ticket(model, job_of(*[100] * 9)), max_tokens=1000)
    with pytest.raises(QueueFull) as refused:
        queue.admit(Ticket(model, job_of(100, 100, 100)))  # 200 tokens too many, at 100 per second
    assert refused.value.retry_after_s == pytest.approx(2.0)
    assert queue.tokens_waiting == 900
    queue.take()
    queue.take()
    queue.admit(Ticket(model, job_of(100, 100, 100)))


def test_size_alone_never_refuses_a_request() -> None:
    queue = queue_of(Ticket(Model(), job_of(*[100] * 50)), max_tokens=1000)
    assert queue.tokens_waiting == 5000


def test_a_dropped_request_is_not_computed_further() -> None:
    model = Model()
    gone, stays = Ticket(model, job_of(*[100] * 5)), Ticket(model, job_of(100))
    queue = queue_of(gone, stays)
    queue.take()
    queue.drop(gone)
    queue.drop(gone)
    assert all(work.job in stays.jobs for batch in drain(queue) for work in batch.works)
    assert queue.tokens_waiting == 0


def test_the_jobs_of_one_request_share_a_place() -> None:
    model = Model()
    jobs = [job_of(30, 20), job_of(40), job_of(10)]
    ticket, later = Ticket(model, *jobs), Ticket(model, job_of(10))
    queue = queue_of(ticket, later)
    assert queue.tokens_waiting == 110 and not ticket.demand.bulk
    batches = drain(queue)
    works = [work for batch in batches for work in batch.works]
    assert [len(work.tokens) for work in works] == [30, 20, 40, 10, 10]
    assert [work.job for work in works] == [jobs[0], jobs[0], jobs[1], jobs[2], *later.jobs]
    assert Ticket(model, *(job_of(50) for _ in range(100))).demand.bulk  # as one job of that size


def test_the_seconds_of_all_work_are_at_each_models_rate() -> None:
    slow, fast = Model(tokens_per_second=100.0), Model(tokens_per_second=1000.0)
    queue = queue_of(Ticket(slow, job_of(50, 50)), Ticket(fast, job_of(500)))
    assert queue.seconds_waiting() == pytest.approx(1.0 + 0.5)
    place = queue.expect(Demand(slow, 200))  # admitted and not tokenised yet
    assert queue.seconds_waiting() == pytest.approx(3.5)
    queue.forget(place)
    queue.take()
    assert queue.seconds_waiting() == pytest.approx(0.5)
    queue.take()
    assert queue.seconds_waiting() == 0
