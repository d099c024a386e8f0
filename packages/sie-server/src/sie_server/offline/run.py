"""Doing the pieces of a work that a journal does not have yet."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sie_server.offline.journal import Journal
from sie_server.offline.progress import Silent, Step

Work = TypeVar("Work")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Piece(Generic[Work]):
    """A part of a work that is done whole or not at all; equal keys mean equal results."""

    key: str
    work: Work


async def finish(
    pieces: Iterable[Piece[Work]],
    do: Callable[[Work], Awaitable[object]],
    journal: Journal,
    *,
    concurrency: int = 1,
    step: Step | None = None,
) -> None:
    """Do every piece that the journal does not have, `concurrency` at a time, in their order.

    The first error ends the work; finished pieces are kept.
    """
    step = step or Silent()
    by_key = {piece.key: piece for piece in pieces}
    missing = [piece for piece in by_key.values() if piece.key not in journal]
    step.begin(len(by_key), len(by_key) - len(missing))
    waiting = iter(missing)

    async def take() -> None:
        for piece in waiting:
            journal.add(piece.key, await do(piece.work))
            step.advance()

    tasks = [asyncio.create_task(take()) for _ in range(min(concurrency, len(missing)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        step.end()


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end, also where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1, thread_name_prefix=f"{threading.current_thread().name}-offline") as pool:
        return pool.submit(asyncio.run, work).result()
