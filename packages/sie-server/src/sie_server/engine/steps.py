"""The steps of a request and their times, recorded only while a request in the batch is traced.

The device thread's steps are recorded where they happen; `serving` assigns them to the requests of the batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import NamedTuple

Value = str | int | float


class Step(NamedTuple):
    """A part of a request; times are those of `time.perf_counter`, in seconds."""

    name: str
    started: float
    ended: float
    attributes: Mapping[str, Value]


def wall_offset() -> float:
    """Return the seconds from `perf_counter` to the time since 1970, for other processes and for traces."""
    return time.time() - time.perf_counter()


_recorded: ContextVar[list[Step] | None] = ContextVar("recorded", default=None)
NOTHING = nullcontext()


@contextmanager
def recorded(*, on: bool) -> Iterator[list[Step]]:
    """Yield the list to which `step` adds on this thread; with `on` false it stays empty, at no cost."""
    steps: list[Step] = []
    token = _recorded.set(steps if on else None)
    try:
        yield steps
    finally:
        _recorded.reset(token)


def is_recording() -> bool:
    """Return whether steps are recorded on this thread."""
    return _recorded.get() is not None


def step(name: str) -> AbstractContextManager[None]:
    """Record the block as a step."""
    steps = _recorded.get()
    return NOTHING if steps is None else _timed(steps, name)


@contextmanager
def _timed(steps: list[Step], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    steps.append(Step(name, started, time.perf_counter(), {}))
