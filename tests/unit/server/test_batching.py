"""The batching policy is pure: these tests need no clock, no thread and no model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from sie_server.engine.job import Job, build_job
from sie_server.errors import QueueFull
from sie_server.models.batch import Tokens
from sie_server.serving.queue import SLICE_BATCHES, Batch, Ticket, TokenQueue


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


def test_a_batch_stays_within_the_budget_and_is_of_even_length() -> None:
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
    assert batch is not None and batch.works[0].job is small.job


def test_a_bulk_request_goes_back_in_line_after_every_turn() -> None:
    """A small request that comes at any time waits for one turn of the bulk at most, not for all of it."""
    model = Model()
    bulk = Ticket(model, job_of(*[50] * 400))
    queue = queue_of(bulk, max_tokens=100_000)
    for _ in range(60):
        queue.take()
        small = Ticket(model, job_of(50))
        queue.admit(small)
        waited = 0
        while not small.exhausted:
            waited += sum(sizes(queue.take()))
        assert waited <= (SLICE_BATCHES + 1) * model.batch_tokens
    assert not bulk.exhausted


def test_a_bulk_request_is_never_starved() -> None:
    """Always one small request beside it: the bulk of B tokens is done after at most 2·B and a batch."""
    model = Model()
    bulk = Ticket(model, job_of(*[100] * 20))
    small = Ticket(model, job_of(100))
    queue = queue_of(bulk, small)
    work_done = 0
    while not bulk.exhausted:
        if small.exhausted:
            small = Ticket(model, job_of(100))
            queue.admit(small)
        work_done += sum(sizes(queue.take()))
    assert work_done <= 2 * 2000 + 100


def test_equal_requests_are_first_come_first_served() -> None:
    model = Model()
    tickets = [Ticket(model, job_of(100, 100)) for _ in range(5)]
    order = [batch.works[0].job for batch in drain(queue_of(*tickets))]
    assert order == [ticket.job for ticket in tickets for _ in range(2)]


def test_a_full_queue_refuses_with_the_time_it_needs() -> None:
    model = Model(tokens_per_second=100.0)
    queue = queue_of(Ticket(model, job_of(*[100] * 9)), max_tokens=1000)
    with pytest.raises(QueueFull) as refused:
        queue.admit(Ticket(model, job_of(100, 100, 100)))  # 200 tokens too many, at 100 a second
    assert refused.value.retry_after_s == pytest.approx(2.0)
    assert queue.tokens_waiting == 900
    queue.take()
    queue.take()
    queue.admit(Ticket(model, job_of(100, 100, 100)))


def test_size_alone_never_refuses_a_request() -> None:
    queue = queue_of(Ticket(Model(), job_of(*[100] * 50)), max_tokens=1000)
    assert queue.tokens_waiting == 5000


def test_a_dropped_request_costs_nothing_more() -> None:
    model = Model()
    gone, stays = Ticket(model, job_of(*[100] * 5)), Ticket(model, job_of(100))
    queue = queue_of(gone, stays)
    queue.take()
    queue.drop(gone)
    queue.drop(gone)
    assert all(work.job is stays.job for batch in drain(queue) for work in batch.works)
    assert queue.tokens_waiting == 0
