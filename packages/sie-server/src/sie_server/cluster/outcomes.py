"""What crosses the processes: the context of a call, and its result or error.

Ray wraps exceptions in its own, so an error of ours crosses as data.
"""

from __future__ import annotations

import copyreg
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import msgspec

from sie_server.engine.steps import Step, wall_offset
from sie_server.errors import InferenceError, SIEError
from sie_server.serving.metrics import RequestTiming
from sie_server.wire import ScoreResponse

RESPONSE = msgspec.msgpack.Decoder(ScoreResponse)
BY_CODE = {kind.code: kind for kind in SIEError.__subclasses__()}


@dataclass(frozen=True)
class Context:
    """The parts of a request that a replica needs in addition to its body."""

    request_id: str = ""
    deadline_ms: float | None = None  # left
    traced: bool = False
    most_tokens: int | None = None  # of one request of the caller's key

    @classmethod
    def of(cls, timing: RequestTiming) -> Context:
        """Return the context of a request that goes to a replica now."""
        left = None if timing.deadline is None else (timing.deadline - perf_counter()) * 1e3
        return cls(timing.request_id, left, timing.steps is not None, timing.most_tokens)

    def timing(self) -> RequestTiming:
        """Start the timing of the request on this machine, whose clock is another one."""
        steps: list[Step] | None = [] if self.traced else None
        timing = RequestTiming(request_id=self.request_id, steps=steps, most_tokens=self.most_tokens)
        if self.deadline_ms is not None:
            timing.set_deadline(self.deadline_ms)
        return timing


@dataclass(frozen=True)
class Failure:
    """A `SIEError` as data."""

    code: str
    message: str
    retry_after_s: float | None
    details: dict[str, Any]

    @classmethod
    def of(cls, error: SIEError) -> Failure:
        """Return the data of an error."""
        return cls(error.code, error.message, error.retry_after_s, error.details)

    def error(self) -> SIEError:
        """Return the error."""
        kind = BY_CODE.get(self.code, InferenceError)
        return kind(self.message, retry_after_s=self.retry_after_s, **self.details)


@dataclass(frozen=True)
class Outcome:
    """The result of a call to a replica."""

    replica: str
    value: Any = None
    failure: Failure | None = None
    sources: frozenset[str] = frozenset()  # places that the message may contain
    stages: dict[str, float] = field(default_factory=dict)  # fields of the timing
    version: str = ""  # of the weights and the adapter that answered
    steps: tuple[Step, ...] = ()  # of a traced request; their times are those of the wall clock

    def charge(self, timing: RequestTiming) -> None:
        """Add the costs in the replica to those of the request. A key over its quota is charged, not refused."""
        charge_parts([self], timing)

    def result(self) -> Any:
        """Return the value.

        Raises:
            SIEError: the call failed.
        """
        if self.failure:
            raise self.failure.error()
        return self.value


TIMES, COUNTS = ("tokenization_ms", "queue_ms", "inference_ms"), ("items", "tokens")


def charge_parts(outcomes: Sequence[Outcome], timing: RequestTiming) -> None:
    """Add the costs of calls that ran side by side: texts and tokens add up, and the longest times count."""
    for names, total in ((TIMES, max), (COUNTS, sum)):
        for name in names:
            if spent := [one.stages[name] for one in outcomes if name in one.stages]:
                setattr(timing, name, (getattr(timing, name) or 0) + total(spent))
    for one in outcomes:
        for step in one.steps:
            started, ended = (moment - wall_offset() for moment in (step.started, step.ended))
            timing.step(step.name, started, ended, **step.attributes, **{"sie.replica": one.replica})


async def outcome_of(
    replica: str, timing: RequestTiming, work: Awaitable[Any], sources: Callable[[], set[str]]
) -> Outcome:
    """Await `work` and return its result or error as data."""
    value, failure = None, None
    try:
        value = await work
    except SIEError as error:
        failure = Failure.of(error)
    stages = {name: spent for name in TIMES + COUNTS if (spent := getattr(timing, name))}
    places = frozenset(sources()) if failure else frozenset()
    steps = tuple(
        step._replace(started=step.started + wall_offset(), ended=step.ended + wall_offset())
        for step in timing.steps or ()
    )
    return Outcome(replica, value, failure, places, stages, timing.version, steps)


def _as_bytes(response: ScoreResponse) -> tuple[Any, ...]:
    """Pickle a response as its encoding. pickle alone takes a millisecond for 100 entries.

    It would search all modules for the constant of every absent field.
    """
    return _decoded, (msgspec.msgpack.encode(response),)


def _decoded(response: bytes) -> ScoreResponse:
    return RESPONSE.decode(response)


copyreg.pickle(ScoreResponse, _as_bytes)
