"""Requests that grow while their first batches run: every work once, fair, and dropped when the request ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sie_server.engine.growing import GrowingJob
from sie_server.engine.job import QUERY, Chunk, Job, Work, build_job
from sie_server.engine.text.slices import SLICE_CHARS, before_slice, count_sequence
from sie_server.errors import InferenceError, QueueFull, SIEError
from sie_server.models.batch import Tokens
from sie_server.serving.device.queue import SLICE_BATCHES, Ticket, TokenQueue, tokens_of
from sie_server.serving.device.tickets import PendingTicket, TicketClosed
from sie_server.serving.device.worker import DeviceWorker
from sie_server.serving.growing import Feed, whole_batches
from sie_server.serving.metrics import Metrics, RequestTiming
from sie_server.serving.tokenizing import TokenizerPool
from sie_server.serving.tokenizing.pieces import MOST_PIECES, pieces

BATCH = 100
WORDS = st.lists(st.integers(0, 30), min_size=1, max_size=40)  # equal numbers are equal texts


@dataclass(eq=False)
class Model:
    batch_tokens: int = BATCH
    tokens_per_second: float = 1000.0


def sequence(text: int) -> Tokens:
    return Tokens(np.full(text + 1, text, np.int32), text + 1)


def part_of(texts: Sequence[int], *, query: bool = False) -> Job:
    job = build_job(("score",), [sequence(text) for text in texts], [text > 20 for text in texts])
    if query:
        job.work.insert(0, Work(sequence(99), QUERY, job))
    return job


def windows_of(texts: Sequence[int]) -> Job:
    """Each text has 1 to 3 windows."""
    chunks = [
        Chunk(i, n, text % 3 + 1, n, n + 1) for i, text in enumerate(texts) for n in range(text % 3 + 1)
    ]
    windows = [sequence(texts[chunk.document] + 5 * chunk.index) for chunk in chunks]
    job = build_job(("score",), windows, [texts[chunk.document] > 20 for chunk in chunks])
    job.chunks = chunks
    return job


def score(works: Sequence[Work]) -> None:
    for work in works:
        if work.index != QUERY:
            work.job.put(work.index, float(work.tokens.ids.sum()))


@settings(deadline=None)
@given(WORDS, st.lists(st.integers(1, 10), min_size=1), st.booleans(), st.randoms())
def test_a_grown_job_equals_the_whole_one(
    texts: list[int], sizes: list[int], query: bool, chance: Any
) -> None:
    places = list(range(len(texts)))
    chance.shuffle(places)
    growing, works = GrowingJob(len(texts)), []
    while places:
        own, places = places[: sizes[0]], places[sizes[0] :]
        sizes = sizes[1:] + sizes[:1]
        works += growing.add(part_of([texts[i] for i in own], query=query), own)
        if chance.random() < 0.5:  # the device may be faster or slower than the tokeniser
            score(works)
    score(works)
    growing.finish()
    job, whole = growing.whole(), part_of(texts, query=query)
    score(whole.work)
    assert works == job.work and all(work.job is job for work in works)
    assert (job.results, job.truncated) == (whole.results, whole.truncated)
    assert (job.tokens, job.input_tokens) == (whole.tokens, whole.input_tokens)
    assert sorted(len(work.tokens) for work in works) == sorted(len(work.tokens) for work in whole.work)
    assert [work.index for work in works].count(QUERY) == query


@settings(deadline=None)
@given(WORDS, st.integers(1, 10), st.randoms())
def test_the_windows_of_a_grown_job_are_in_the_order_of_the_texts(
    texts: list[int], size: int, chance: Any
) -> None:
    places = list(range(len(texts)))
    chance.shuffle(places)
    growing = GrowingJob(len(texts))
    for start in range(0, len(places), size):
        own = places[start : start + size]
        score(growing.add(windows_of([texts[i] for i in own]), own))
    growing.finish()
    job, whole = growing.whole(), windows_of(texts)
    score(whole.work)
    assert (job.results, job.truncated, job.chunks) == (whole.results, whole.truncated, whole.chunks)
    assert job.input_tokens == whole.input_tokens
    for work in job.work:
        assert job.results[work.index] == work.tokens.ids.sum()


def test_a_job_with_a_shared_prefix_or_blocks_cannot_grow() -> None:
    job = part_of([1, 2])
    job.blocks = [range(2)]
    with pytest.raises(RuntimeError, match="cannot grow"):
        GrowingJob(2).add(job, [0, 1])


@settings(deadline=None)
@given(st.lists(st.text("ab", max_size=9), min_size=1, max_size=80), st.floats(1.01, 100))
def test_pieces_have_every_text_once_and_equal_texts_together(texts: list[str], batches: float) -> None:
    sizes = [len(text) + 1 for text in texts]
    found = pieces(texts, sizes, batches)
    assert sorted(i for piece in found for i in piece) == list(range(len(texts)))
    assert all(found) and len(found) <= MOST_PIECES + 1
    places = {text: {n for n, piece in enumerate(found) for i in piece if texts[i] == text} for text in texts}
    assert all(len(own) == 1 for own in places.values())
    lengths = [sizes[i] for piece in found for i in piece]
    assert lengths == sorted(lengths, reverse=True)


@settings(deadline=None)
@given(st.lists(st.integers(0, 150), max_size=30))
def test_whole_batches_leave_less_than_a_batch(lengths: list[int]) -> None:
    works = part_of(sorted(lengths, reverse=True)).work
    count = whole_batches(works, BATCH)
    assert tokens_of(works[count:]) <= max(BATCH, len(works[-1].tokens) if works else 0)
    assert len(works) == count or tokens_of(works[count:]) or not works
    # nothing is handed over that later works could still fill up
    assert not count or tokens_of(works[: count + 1]) > BATCH


@dataclass
class Grown:
    """A ticket, the parts that it has not got yet, and the works that were handed out."""

    ticket: Ticket
    parts: list[list[Work]]
    taken: list[Work]


def grown(model: Model, lengths: list[int], parts: int, expected: int) -> Grown:
    job = build_job(("score",), [Tokens(np.full(n, n, np.int32), n) for n in lengths], [False] * len(lengths))
    job.work = [Work(Tokens(np.full(n, i, np.int32), n), i, job) for i, n in enumerate(lengths)]
    if parts == 1:
        return Grown(Ticket(model, job), [], [])
    ticket = Ticket(model, expected=expected)
    size = -(-len(lengths) // parts)
    return Grown(ticket, [job.work[i : i + size] for i in range(0, len(lengths), size)], [])


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.integers(1, 120), min_size=1, max_size=25), st.integers(1, 4), st.integers(1, 2000)
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(REQUESTS, st.randoms())
def test_the_queue_hands_out_every_work_once_and_counts_the_rest(requests: list[Any], chance: Any) -> None:
    model, queue = Model(), TokenQueue[Ticket](1_000_000)
    all_of = [grown(model, *request) for request in requests]
    waiting: list[Grown] = []
    to_come = list(all_of)
    while to_come or queue or any(one.parts for one in waiting):
        step = chance.random()
        growing = [one for one in waiting if one.parts]
        if to_come and step < 0.3:
            one = to_come.pop()
            if one.parts:
                queue.grow(one.ticket, one.parts.pop(0), whole=not one.parts)
            else:
                queue.admit(one.ticket)
            waiting.append(one)
        elif growing and step < 0.6:
            one = chance.choice(growing)
            queue.grow(one.ticket, one.parts.pop(0), whole=not one.parts)
        elif batch := queue.take():
            assert tokens_of(batch.works) <= BATCH or len(batch.works) == 1
            for one in waiting:
                one.taken += [work for work in batch.works if work.job in one.ticket.jobs]
        assert queue.tokens_waiting == sum(ticket.tokens_waiting for ticket in queue._tickets)
        assert all(ticket.tokens_waiting >= 0 for ticket in queue._tickets)
        assert queue.seconds_waiting() >= 0
    assert queue.tokens_waiting == 0 and queue.take() is None
    for one, (lengths, _, _) in zip(all_of, requests, strict=True):
        assert [len(work.tokens) for work in one.taken] == lengths


def test_a_growing_ticket_has_the_lane_of_what_is_expected_then_of_its_size() -> None:
    model = Model()
    queue = TokenQueue[Ticket](1_000_000)
    large = grown(model, [40] * 20, 2, expected=1000)
    queue.grow(large.ticket, large.parts[0], whole=False)
    assert large.ticket.demand.bulk and queue.tokens_waiting == 1000
    small = Ticket(model, part_of([9]))
    queue.admit(small)
    first = queue.take()
    assert first and first.tickets[0] is small  # the lane of interactive jobs goes first
    queue.grow(large.ticket, [], whole=True)  # fewer tokens than expected
    assert not large.ticket.demand.bulk and queue.tokens_waiting == 400 + 10 - tokens_of(first.works)


def test_an_underestimated_request_moves_to_the_bulk_lane() -> None:
    queue, model = TokenQueue[Ticket](1_000_000), Model()
    request = grown(model, [50] * (2 * 2 * SLICE_BATCHES), 2, expected=50)
    queue.grow(request.ticket, request.parts[0], whole=False)
    queue.grow(request.ticket, request.parts[1], whole=True)
    assert request.ticket.demand.bulk and request.ticket.slice_left == BATCH


def test_works_over_the_bound_of_the_queue_are_refused_in_a_later_part() -> None:
    queue, model = TokenQueue[Ticket](1000), Model()
    queue.admit(Ticket(model, part_of([20] * 1), part_of([25])))
    request = grown(model, [100] * 12, 2, expected=600)
    queue.grow(request.ticket, request.parts[0], whole=False)
    with pytest.raises(QueueFull, match="1200 more do not fit"):
        queue.grow(request.ticket, request.parts[1], whole=True)
    queue.drop(request.ticket)
    assert queue.tokens_waiting == 21 + 26


class LengthEngine:
    """Scores a sequence by its length; a batch with a sequence of 13 tokens fails."""

    batch_tokens, tokens_per_second, overlap = BATCH, 100_000.0, 0

    def __init__(self) -> None:
        self.seen: list[int] = []

    def run(self, works: list[Work]) -> list[Any]:
        lengths = [len(work.tokens) for work in works]
        if 13 in lengths:
            raise ValueError("unlucky")
        self.seen += lengths
        return lengths


class Broken(Exception):
    """The tokenizer refuses a text."""


@dataclass
class Behaviour:
    texts: list[int]
    part: int  # texts of a part
    fails_at: int | None  # part whose tokenising fails
    leaves_after: int | None  # parts after which the caller hangs up


BEHAVIOURS = st.lists(
    st.builds(
        Behaviour,
        WORDS,
        st.integers(1, 12),
        st.none() | st.integers(0, 4),
        st.none() | st.integers(0, 4),
    ),
    min_size=1,
    max_size=8,
)


async def one_request(worker: DeviceWorker, engine: Any, own: Behaviour) -> list[Any]:
    ticket = PendingTicket(engine, [], RequestTiming(), None, expected=sum(own.texts) + 1)
    growing, task = GrowingJob(len(own.texts)), asyncio.current_task()
    loop = asyncio.get_running_loop()

    def tokenise() -> Job:
        starts = range(0, len(own.texts), own.part)
        for number, start in enumerate(starts):
            if number == own.fails_at:
                raise Broken
            if number == own.leaves_after and task:
                loop.call_soon_threadsafe(task.cancel)
            places = list(range(start, min(start + own.part, len(own.texts))))
            works = growing.add(part_of([own.texts[i] for i in places]), places)
            worker.hand_over(ticket, works, whole=start == starts[-1])
        return growing.whole()

    with worker.waiting_for(ticket):
        with suppress(TicketClosed):  # `results` raises its error
            await asyncio.to_thread(tokenise)
        await worker.results(ticket)
    growing.finish()
    return growing.job.results


@settings(max_examples=60, deadline=None)
@given(BEHAVIOURS)
def test_a_mix_of_requests_some_of_which_fail_or_leave(mix: list[Behaviour]) -> None:
    async def scenario() -> list[Any]:
        worker = DeviceWorker(1_000_000, 1, Metrics())
        engine = LengthEngine()
        tasks = [asyncio.create_task(one_request(worker, engine, own)) for own in mix]
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert worker._queue.tokens_waiting == 0 and not worker._queue._tickets and not worker._pending
        assert (await one_request(worker, engine, Behaviour([3, 4], 1, None, None))) == [4, 5]
        await asyncio.to_thread(worker.close)
        return found

    found = asyncio.run(scenario())
    for own, result in zip(mix, found, strict=True):
        parts = -(-len(own.texts) // own.part)
        may_leave = own.leaves_after is not None and own.leaves_after < parts
        unlucky, broken = 12 in own.texts, own.fails_at is not None and own.fails_at < parts
        if isinstance(result, asyncio.CancelledError):
            assert may_leave
        elif isinstance(result, Broken):
            assert broken
        elif isinstance(result, SIEError):
            assert isinstance(result, InferenceError) and unlucky
        else:
            assert result == [text + 1 for text in own.texts] and not broken and not unlucky


async def test_a_closed_request_takes_no_more_work() -> None:
    worker = DeviceWorker(1_000_000, 1, Metrics())
    ticket = PendingTicket(LengthEngine(), [], RequestTiming(), None, expected=500)  # type: ignore[arg-type]
    with pytest.raises(Broken), worker.waiting_for(ticket):
        worker.hand_over(ticket, part_of([30, 29]).work, whole=False)
        raise Broken
    with pytest.raises(TicketClosed):
        worker.hand_over(ticket, part_of([5]).work, whole=True)
    assert not worker._queue._tickets and worker._queue.tokens_waiting == 0
    await asyncio.to_thread(worker.close)
    fresh = PendingTicket(LengthEngine(), [], RequestTiming(), None, expected=500)  # type: ignore[arg-type]
    with pytest.raises(QueueFull, match="shutting down"):
        worker.hand_over(fresh, part_of([5]).work, whole=False)
    fresh.settle()


async def test_a_failed_batch_fails_a_request_whose_later_texts_are_still_tokenised() -> None:
    worker = DeviceWorker(1_000_000, 1, Metrics())
    mix = Behaviour([30, 12] + [9] * 30, 2, None, None)
    with pytest.raises(InferenceError):
        await one_request(worker, LengthEngine(), mix)
    assert not worker._pending and not worker._queue._tickets
    await asyncio.to_thread(worker.close)


@dataclass
class SlowPlan:
    """A plan whose every piece takes a slice of the tokenizer, and notes its thread."""

    engine: Any
    texts: list[int]
    threads: list[str]

    def only(self, places: Sequence[int]) -> SlowPlan:
        return SlowPlan(self.engine, [self.texts[i] for i in places], self.threads)

    def job(self, _: object) -> Job:
        count_sequence(1000)
        before_slice(SLICE_CHARS)
        self.threads.append(threading.current_thread().name)
        return part_of(self.texts)


async def test_a_request_that_proves_large_continues_with_the_piece_that_was_interrupted() -> None:
    worker, pool = DeviceWorker(1_000_000, 1, Metrics()), TokenizerPool(2)
    texts = [n % 12 for n in range(60)]
    plan = SlowPlan(LengthEngine(), texts, [])
    ticket = PendingTicket(plan.engine, [], RequestTiming(), None, expected=1000)
    feed = Feed(plan, None, [list(range(i, i + 12)) for i in range(0, 60, 12)], ticket, worker, lambda: None)  # type: ignore[arg-type]
    with worker.waiting_for(ticket):
        job = await pool.run(feed, ["x"])
        await worker.results(ticket)
    feed.growing.finish()
    assert job.results == [text + 1 for text in texts]
    assert len(plan.threads) == 5 and "large" not in plan.threads[0] and "large" in plan.threads[-1]
    assert feed._allowance.most - feed._allowance.left == 5 * 1000
    pool.close()
    await asyncio.to_thread(worker.close)
