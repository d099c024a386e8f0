"""A request whose first batches run while its later texts are tokenised.

The texts are tokenised in pieces of about a batch, the longest texts first. Works are handed over in whole batches, so
the batches of the request are those of a request that was tokenised as a whole, but for a few sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, Self

from sie_server.engine.engine import Engine
from sie_server.engine.growing import GrowingJob
from sie_server.engine.job import QUERY, Job, Work
from sie_server.engine.lora.adapter import Adapter
from sie_server.engine.text.slices import Allowance, counted
from sie_server.serving.device.tickets import PendingTicket
from sie_server.serving.device.worker import DeviceWorker
from sie_server.serving.metrics import RequestTiming
from sie_server.serving.tokenizing.pieces import pieces


class Plan(Protocol):
    """A request whose every field fits the model."""

    @property
    def engine(self) -> Engine:
        """The model."""

    @property
    def divisible(self) -> bool:
        """Whether the result of a text depends neither on the other texts nor on a check of all of them."""

    @property
    def read_texts(self) -> Sequence[str]:
        """The texts that have results."""

    @property
    def sizes(self) -> list[int]:
        """The characters of each text that the model may read, with those of the query."""

    def only(self, places: Sequence[int]) -> Self:
        """Return the plan for some of the texts."""

    def job(self, adapter: Adapter | None) -> Job:
        """Tokenise the texts; blocking, for a tokeniser thread."""


def divided(
    plans: Sequence[Plan], adapter: Adapter | None, tokens: int, timing: RequestTiming
) -> list[list[int]]:
    """Return the pieces of a request with an estimated number of `tokens`; fewer than two: it is tokenised as a whole.

    The rule and its measurements are in docs/decisions.md.
    """
    plan = plans[0]
    batches = tokens / plan.engine.batch_tokens
    if batches <= 1 or len(plans) > 1 or not plan.engine.overlap:
        return []
    # the quota of a key is checked for the exact number of tokens before the model reads any
    if timing.most_tokens is not None or not plan.divisible or not plan.engine.reads_apart(adapter):
        return []
    return pieces(plan.read_texts, plan.sizes, batches)


class Feed:
    """Tokenises a request piece by piece, and hands its works over. Called on a tokeniser thread.

    A call may be interrupted between two slices; a second call continues with the piece that was interrupted.
    """

    def __init__(
        self,
        plan: Plan,
        adapter: Adapter | None,
        places: Sequence[list[int]],
        ticket: PendingTicket,
        worker: DeviceWorker,
        queued: Callable[[], None],
    ) -> None:
        """`queued` is called before the first works are handed over."""
        self._plan, self._adapter, self._pieces = plan, adapter, places
        self._ticket, self._worker, self._queued = ticket, worker, queued
        self.growing = GrowingJob(sum(map(len, places)))
        self._allowance = Allowance()
        self._next = 0  # piece
        self._ready: list[Work] = []  # less than a batch, longest first

    def __call__(self) -> Job:
        """Return the whole job, whose works are with the device.

        Raises:
            InvalidInput: see `Plan.job`. QueueFull, TicketClosed: see `DeviceWorker.hand_over`.
        """
        while self._next < len(self._pieces):
            piece = self._pieces[self._next]
            with counted(self._allowance):
                part = self._plan.only(piece).job(self._adapter)
            self._next += 1
            works = self._ready + self.growing.add(part, piece)
            self._ready = sorted(works, key=lambda work: (work.index != QUERY, -len(work.tokens)))
            self._hand_over(whole=self._next == len(self._pieces))
        return self.growing.whole()

    def _hand_over(self, *, whole: bool) -> None:
        count = len(self._ready) if whole else whole_batches(self._ready, self._plan.engine.batch_tokens)
        if count or whole:
            self._queued()
            works, self._ready = self._ready[:count], self._ready[count:]
            self._worker.hand_over(self._ticket, works, whole=whole)


def whole_batches(works: Sequence[Work], batch_tokens: int) -> int:
    """Return how many of the works, from the first on, make full batches."""
    count, left = 0, batch_tokens
    for place, work in enumerate(works):
        size = len(work.tokens)
        if size > left and place > count:
            count, left = place, batch_tokens
        left -= size
    return count
