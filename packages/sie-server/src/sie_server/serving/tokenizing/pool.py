"""The tokeniser threads: step ③ of a request runs here, in slices, so that no request waits long for another.

A *small* request has about a slice of text and runs on the first free thread. A *large* one has a thread of its own,
but waits before every slice: few of them tokenise at a time, and the one that has tokenised least is next. A request
whose caller has left, and at shutdown every request, ends before its next slice. While fewer requests tokenise than
there are threads and cores, idle threads help with the texts of a slice (`serving.tokenizing.crew`).

A *tiny* request is tokenised where it arrives, on the event loop, because handing it to a thread and back takes the
event loop as long. A tokenizer that takes much longer, for example for its regular expressions, is used on the threads
for some time, which doubles each time it is slow again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakKeyDictionary

from sie_server.engine.device import usable_cores
from sie_server.engine.text.slices import SLICE_CHARS, SLICE_TEXTS, paced, spread_by
from sie_server.errors import QueueFull
from sie_server.room import Threads
from sie_server.serving.tokenizing.crew import Crew

Result = TypeVar("Result")
LARGE_THREADS = 64  # most of them wait; further large requests start in order of arrival
MOST_SMALL = 2 * SLICE_CHARS  # characters that a small request may tokenise before it counts as large
THREADS = "sie-tokenize"
TINY_CHARS, TINY_TEXTS = 2048, 8  # 0.1 to 0.4 ms
SLOW_S = 0.005  # time of a tiny request, after which its tokenizer is used on the threads
FIRST_REST_S, LAST_REST_S = 10.0, 3600.0  # for so long


class Abandoned(BaseException):
    """The request was cancelled or the server stops. Not an `Exception`: nothing may handle it and continue."""


class TooLarge(BaseException):
    """A small request has more work than its texts announced."""


class Turns:
    """Which large requests may tokenise now. Thread-safe."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._changed = threading.Condition()
        self._present: list[Ticket] = []
        self._waiting: list[Ticket] = []

    def join(self, ticket: Ticket) -> None:
        """Add a request, level with the one that has tokenised least: new requests must not delay it indefinitely."""
        with self._changed:
            ticket.used = min((other.used for other in self._present), default=0)
            self._present.append(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Remove a request and free its place."""
        with self._changed:
            self._present.remove(ticket)
            self._free_place(ticket)

    def wait(self, ticket: Ticket, characters: int) -> None:
        """Free the request's place, and wait until it may tokenise the next `characters`, or is cancelled."""
        with self._changed:
            self._free_place(ticket)
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: ticket.cancelled or self._is_next(ticket))
            self._waiting.remove(ticket)
            if not ticket.cancelled:
                self._free -= 1
                ticket.running = True
                ticket.used += characters
            self._changed.notify_all()

    def cancel(self, ticket: Ticket) -> None:
        """Let a request end before its next slice."""
        with self._changed:
            ticket.cancelled = True
            self._changed.notify_all()

    def _is_next(self, ticket: Ticket) -> bool:
        return self._free > 0 and ticket is min(self._waiting, key=lambda other: other.used)

    def _free_place(self, ticket: Ticket) -> None:
        if ticket.running:
            ticket.running = False
            self._free += 1
            self._changed.notify_all()


class Ticket:
    """The progress of one request; its methods run on the request's thread."""

    def __init__(self) -> None:
        self.used = 0  # characters tokenised, counted from where it joined
        self.running = self.cancelled = False

    def check(self, characters: int) -> None:
        """Before a slice of a small request.

        Raises:
            Abandoned: the request was cancelled.
            TooLarge: it must continue as a large one.
        """
        if self.cancelled:
            raise Abandoned
        if self.used and self.used + characters > MOST_SMALL:
            raise TooLarge
        self.used += characters


class Rests:
    """Tokenizers that have been slow on the event loop. Each rests for twice as long as the time before."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._rests: WeakKeyDictionary[object, tuple[float, float]] = WeakKeyDictionary()  # end, seconds

    def over(self, owner: object) -> bool:
        """Return whether the tokenizer of `owner` may be used on the event loop."""
        return owner not in self._rests or self.clock() >= self._rests[owner][0]

    def note(self, owner: object, seconds: float) -> None:
        """Note the time that a tiny request took."""
        if seconds > SLOW_S:
            _, last = self._rests.get(owner, (0.0, FIRST_REST_S / 2))
            rest = min(2 * last, LAST_REST_S)
            self._rests[owner] = self.clock() + rest, rest
        elif owner in self._rests:
            del self._rests[owner]


class TokenizerPool:
    """Runs the tokenising of requests. Its methods are called on the event loop."""

    def __init__(self, threads: int) -> None:
        self._small = Threads(threads, thread_name_prefix=THREADS)
        self._large = Threads(LARGE_THREADS, thread_name_prefix=f"{THREADS}-large")
        self._turns = Turns(max(1, threads // 2))
        at_once = min(threads, usable_cores())
        self._helpers = Threads(max(1, at_once - 1), thread_name_prefix=f"{THREADS}-help")
        self._crew = Crew(at_once, self._helpers.submit)
        self._tickets: set[Ticket] = set()
        self._rests = Rests()
        self._closed = False

    async def run(
        self, work: Callable[[], Result], texts: Sequence[str], owner: object | None = None
    ) -> Result:
        """Run `work`, which tokenises `texts`, on a thread. It may be started again, so it must have no effects.

        `owner` owns the tokenizer. With it, `work` does nothing that takes long but tokenising, and a tiny request runs
        at once.

        Raises:
            QueueFull: the server stops. Errors of `work` pass through.
        """
        if owner is not None and _is_tiny(texts) and self._rests.over(owner) and not self._closed:
            try:
                return self._here(work, owner)
            except TooLarge:
                pass
        if len(texts) <= SLICE_TEXTS and sum(map(len, texts)) <= SLICE_CHARS:
            try:
                return await self._on(self._small, lambda ticket: self._at_once(work, ticket))
            except TooLarge:
                pass
        return await self._on(self._large, lambda ticket: self._in_turns(work, ticket))

    async def _on(self, threads: ThreadPoolExecutor, work: Callable[[Ticket], Result]) -> Result:
        if self._closed:
            raise _stopping()
        ticket = Ticket()
        self._tickets.add(ticket)
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, work, ticket)
        except Abandoned:
            raise _stopping() from None
        finally:
            # without effect unless the caller has left
            self._turns.cancel(ticket)
            self._tickets.discard(ticket)

    def _here(self, work: Callable[[], Result], owner: object) -> Result:
        """Run the work of a tiny request on this thread.

        Raises:
            TooLarge: it tokenises more than its texts, for example a long query.
        """
        left, started = TINY_CHARS, self._rests.clock()

        def check(characters: int) -> None:
            nonlocal left
            left -= characters
            if left < 0:
                raise TooLarge

        try:
            with paced(check):
                return work()
        finally:
            self._rests.note(owner, self._rests.clock() - started)

    def _at_once(self, work: Callable[[], Result], ticket: Ticket) -> Result:
        with paced(ticket.check), spread_by(self._crew.encode):
            return work()

    def _in_turns(self, work: Callable[[], Result], ticket: Ticket) -> Result:
        def next_turn(characters: int) -> None:
            self._turns.wait(ticket, characters)
            if ticket.cancelled:
                raise Abandoned

        self._turns.join(ticket)
        try:
            with paced(next_turn), spread_by(self._crew.encode):
                return work()
        finally:
            self._turns.leave(ticket)

    def close(self) -> None:
        """End the threads: all requests end before their next slice, and those that have not begun are cancelled."""
        self._closed = True
        for ticket in self._tickets:
            self._turns.cancel(ticket)
        for threads in (self._small, self._large, self._helpers):
            threads.shutdown(wait=False, cancel_futures=True)


def _is_tiny(texts: Sequence[str]) -> bool:
    return 0 < len(texts) <= TINY_TEXTS and sum(map(len, texts)) <= TINY_CHARS


def _stopping() -> QueueFull:
    return QueueFull("the server is shutting down", retry_after_s=1)
