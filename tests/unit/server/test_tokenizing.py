"""The tokeniser threads: small requests pass large ones, large ones alternate, cancelled ones end soon."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from sie_server.engine.text.slices import SLICE_CHARS, SLICE_TEXTS, before_slice
from sie_server.errors import QueueFull
from sie_server.serving.tokenizing import LARGE_THREADS, TokenizerPool
from sie_server.serving.tokenizing.pool import SLOW_S, TINY_CHARS, TINY_TEXTS, Rests
from support.waiting import until

LARGE = ["x" * (SLICE_CHARS + 1)]
SMALL = ["x"]


@pytest.fixture
async def pool() -> AsyncIterator[TokenizerPool]:
    pool = TokenizerPool(2)  # one large request tokenises at a time
    yield pool
    pool.close()


class Steps:
    """Work of several slices; the `held`-th one ends only when the gate opens."""

    def __init__(
        self,
        name: str,
        log: list[str],
        slices: int = 3,
        *,
        gate: threading.Event | None = None,
        held: int = 1,
    ) -> None:
        self.name, self.log, self.slices, self.gate, self.held = name, log, slices, gate, held
        self.begun = threading.Event()

    def __call__(self) -> str:
        for number in range(1, self.slices + 1):
            before_slice(SLICE_CHARS)
            self.log.append(self.name)
            self.begun.set()
            if self.gate and number == self.held:
                assert self.gate.wait(60)
        return self.name


def start(pool: TokenizerPool, work: Callable[[], str], texts: list[str]) -> asyncio.Task[str]:
    return asyncio.create_task(pool.run(work, texts))


async def test_large_requests_take_turns_and_the_least_served_is_next(pool: TokenizerPool) -> None:
    log: list[str] = []
    gate = threading.Event()
    first = start(pool, Steps("a", log, 3, gate=gate), LARGE)
    await until(lambda: log)
    others = [start(pool, Steps("b", log, 2), LARGE)]
    await until(lambda: len(pool._turns._waiting) == 1)
    others.append(start(pool, Steps("c", log, 2), LARGE))
    await until(lambda: len(pool._turns._waiting) == 2)
    gate.set()
    assert await asyncio.gather(first, *others) == ["a", "b", "c"]
    # b and c joined level with a, which then waits behind both
    assert log == ["a", "b", "c", "a", "b", "c", "a"]


async def test_a_small_request_waits_for_no_large_one(pool: TokenizerPool) -> None:
    log: list[str] = []
    gate = threading.Event()
    large = [start(pool, Steps("large", log, gate=gate), LARGE) for _ in range(LARGE_THREADS + 5)]
    await until(lambda: log)
    assert await asyncio.wait_for(pool.run(lambda: "small", SMALL), 30) == "small"
    assert log == ["large"]
    gate.set()
    assert await asyncio.gather(*large) == ["large"] * len(large)


@pytest.mark.parametrize("texts", [[""] * (SLICE_TEXTS + 1), ["x"] * (SLICE_CHARS + 1), LARGE])
async def test_many_texts_are_large_too(pool: TokenizerPool, texts: list[str]) -> None:
    def thread() -> str:
        return threading.current_thread().name

    assert "large" in await pool.run(thread, texts)
    assert "large" not in await pool.run(thread, texts[:10] if len(texts) > 1 else SMALL)


async def test_work_that_proves_large_leaves_the_small_threads(pool: TokenizerPool) -> None:
    """The texts are small, but the instruction before each of them is not."""
    threads: list[str] = []

    def work() -> str:
        for _ in range(5):
            before_slice(SLICE_CHARS)
            threads.append(threading.current_thread().name)
        return "done"

    assert await pool.run(work, SMALL) == "done"
    small = [name for name in threads if "large" not in name]
    assert 1 <= len(small) <= 2 and len(threads) == len(small) + 5


async def test_a_cancelled_request_ends_at_its_next_slice(pool: TokenizerPool) -> None:
    log: list[str] = []
    for texts in (LARGE, SMALL):
        log.clear()
        gate = threading.Event()
        work = Steps("gone", log, 2, gate=gate)
        task = start(pool, work, texts)
        await until(work.begun.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        assert await pool.run(lambda: "next", texts) == "next"
        await until(lambda: not pool._turns._present)
        assert log == ["gone"]


async def test_a_cancelled_request_that_waits_ends_at_once(pool: TokenizerPool) -> None:
    log: list[str] = []
    gate = threading.Event()
    holding = start(pool, Steps("holds", log, 1, gate=gate), LARGE)
    await until(lambda: log)
    waiting = start(pool, Steps("waits", log), LARGE)
    await until(lambda: pool._turns._waiting)
    waiting.cancel()
    await until(lambda: len(pool._turns._present) == 1 and not pool._turns._waiting)
    gate.set()
    assert await holding == "holds"
    assert log == ["holds"]


async def test_closing_ends_every_request_at_its_next_slice() -> None:
    pool, log = TokenizerPool(2), list[str]()
    gate = threading.Event()
    works = [Steps("runs", log, gate=gate), Steps("small", log, 2, gate=gate)]
    tasks = [start(pool, works[0], LARGE), start(pool, works[1], SMALL)]
    await until(lambda: all(work.begun.is_set() for work in works))
    tasks.append(start(pool, Steps("waits", log), LARGE))
    await until(lambda: pool._turns._waiting)
    pool.close()
    gate.set()
    for task in tasks:
        with pytest.raises(QueueFull, match="shutting down"):
            await task
    with pytest.raises(QueueFull, match="shutting down"):
        await pool.run(lambda: "late", SMALL)
    assert sorted(log) == ["runs", "small"]
    await until(lambda: not any(t.is_alive() for t in (*pool._small._threads, *pool._large._threads)))


async def test_an_error_of_the_work_frees_its_place(pool: TokenizerPool) -> None:
    def fails() -> str:
        before_slice(1)
        raise ValueError("bad")

    for texts in (LARGE, SMALL):
        with pytest.raises(ValueError, match="bad"):
            await pool.run(fails, texts)
    log: list[str] = []
    assert await pool.run(Steps("after", log), LARGE) == "after"


async def test_a_new_request_does_not_make_up_for_the_past_of_others(pool: TokenizerPool) -> None:
    """Otherwise a stream of new requests would delay an old one indefinitely."""
    log: list[str] = []
    gate = threading.Event()
    old = start(pool, Steps("old", log, 6, gate=gate, held=3), LARGE)
    await until(lambda: len(log) == 3)
    new = start(pool, Steps("new", log, 3), LARGE)
    await until(lambda: pool._turns._waiting)
    gate.set()
    await asyncio.gather(old, new)
    assert log[3:] == ["new", "old", "new", "old", "new", "old"]


class Owner:
    """Owns a tokenizer."""


def thread_after(*slices: int, passing: Callable[[], None] = lambda: None) -> Callable[[], str]:
    """Return work that tokenises slices of these sizes, and returns the name of its thread."""

    def work() -> str:
        for characters in slices:
            before_slice(characters)
        passing()
        return threading.current_thread().name

    return work


async def test_a_tiny_request_is_tokenised_where_it_arrives(pool: TokenizerPool) -> None:
    pool._rests = Rests(lambda: 0.0)
    here, owner = threading.current_thread().name, Owner()
    assert await pool.run(thread_after(5), SMALL, owner) == here
    assert await pool.run(thread_after(5), SMALL) != here  # its work may take long
    assert await pool.run(thread_after(5), ["x"] * (TINY_TEXTS + 1), owner) != here
    assert await pool.run(thread_after(5), ["x" * (TINY_CHARS + 1)], owner) != here
    assert await pool.run(thread_after(5), [], owner) != here  # vectors
    assert await pool.run(thread_after(5), SMALL, owner) == here


async def test_a_tiny_request_with_a_long_query_moves_to_a_thread(pool: TokenizerPool) -> None:
    pool._rests = Rests(lambda: 0.0)
    here, owner = threading.current_thread().name, Owner()
    assert await pool.run(thread_after(TINY_CHARS, 1), SMALL, owner) != here
    assert await pool.run(thread_after(TINY_CHARS - 1, 1), SMALL, owner) == here


async def test_a_slow_tokenizer_rests_from_the_event_loop_for_longer_and_longer(pool: TokenizerPool) -> None:
    now = [0.0]
    pool._rests = Rests(lambda: now[0])
    here, slow, other = threading.current_thread().name, Owner(), Owner()

    def take_long() -> None:
        now[0] += 2 * SLOW_S

    async def is_here(owner: Owner, passing: Callable[[], None] = lambda: None) -> bool:
        return await pool.run(thread_after(5, passing=passing), SMALL, owner) == here

    for rest in (10.0, 20.0, 40.0):
        assert await is_here(slow, take_long)
        now[0] += 0.9 * rest
        assert not await is_here(slow) and await is_here(other)
        now[0] += 0.2 * rest
    assert await is_here(slow)  # fast again
    assert await is_here(slow, take_long) and not await is_here(slow)
    now[0] += 11
    assert await is_here(slow)


async def test_errors_of_a_tiny_request_pass_through_and_a_closed_pool_refuses_it(
    pool: TokenizerPool,
) -> None:
    def broken() -> str:
        raise KeyError("text")

    with pytest.raises(KeyError):
        await pool.run(broken, SMALL, Owner())
    pool.close()
    with pytest.raises(QueueFull):
        await pool.run(thread_after(5), SMALL, Owner())
