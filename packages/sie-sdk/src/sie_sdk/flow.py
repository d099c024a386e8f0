"""The life of a request, written once and without I/O.

`exchange` is a generator. It yields `Send` (put this on the wire; answer with a `Reply` or a `Failure`) and
`Sleep` (wait; answer with None), and returns the 200 reply or raises a SIEError. Retries, backoff, deadline
and the mapping to errors live here; the sync and async clients only carry out the steps. Clock and random
source are arguments, so tests drive it by hand and never sleep.
"""

from __future__ import annotations

import json
import logging
import math
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sie_sdk.errors import (
    ModelLoadingError,
    QueueFullError,
    RateLimitedError,
    ResourceExhaustedError,
    SIEConnectionError,
    SIEError,
    SIETimeoutError,
    error_for,
)

log = logging.getLogger("sie_sdk")


@dataclass(frozen=True)
class Request:
    """What to ask for. `path` is relative to the base URL and percent-encoded."""

    method: Literal["GET", "POST"]
    path: str
    accept: str
    body: bytes | None = None
    content_type: str | None = None


@dataclass(frozen=True)
class Send:
    """Step: put the request on the wire; at most `timeout` seconds of silence."""

    request: Request
    timeout: float


@dataclass(frozen=True)
class Sleep:
    """Step: wait."""

    seconds: float


@dataclass(frozen=True)
class Reply:
    """A complete answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def request_id(self) -> str | None:
        """X-SIE-Request-ID, unless it holds more than visible ASCII."""
        value = self.headers.get("x-sie-request-id", "")
        return value if re.fullmatch(r"[!-~]{1,256}", value) else None


@dataclass(frozen=True)
class Failure:
    """No complete answer.

    connect: no connection came about. dropped: it ended before any of the answer came. broken: it ended in
    the middle of the answer. timeout: silence for too long after the request went out.
    """

    kind: Literal["connect", "dropped", "broken", "timeout"]
    detail: str


Step: TypeAlias = Send | Sleep
Outcome: TypeAlias = Reply | Failure | None
Flow: TypeAlias = Generator[Step, Outcome, Reply]


@dataclass(frozen=True)
class Clock:
    """Time and chance, injected."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time  # epoch seconds, for Retry-After as a date
    random: Callable[[], float] = random.random  # in [0, 1)


@dataclass(frozen=True)
class Patience:
    """How long to go on: `timeout` for one attempt, `deadline` for all, in seconds; `url` is for messages."""

    timeout: float
    deadline: float
    url: str


# How often each passing condition is retried; None: until the deadline. What is not here raises at once.
RETRIES: dict[type[SIEError], int | None] = {
    ModelLoadingError: None,
    QueueFullError: None,
    RateLimitedError: None,
    ResourceExhaustedError: 3,
    SIEConnectionError: 2,  # three tries: a wrong URL should be told soon
}
BACKOFF_FIRST = 0.25  # seconds
BACKOFF_MOST = 8.0


def exchange(request: Request, patience: Patience, clock: Clock) -> Flow:
    """Send `request` until it is answered or patience ends. Returns the 200 reply; raises SIEError."""
    started = clock.monotonic()
    sent = 0
    failed: Counter[type[SIEError]] = Counter()
    while True:
        left = patience.deadline - (clock.monotonic() - started)
        outcome = yield Send(request, min(patience.timeout, left))
        sent += 1
        if isinstance(outcome, Reply):
            if outcome.status == 200:
                return outcome
            failed.pop(SIEConnectionError, None)  # the server is there: restarts later on count anew
        error = error_of(outcome, request, patience.url)
        kind = type(error)
        wait = _retry_wait(outcome, failed.total(), clock)
        limit = RETRIES.get(kind, 0) if error.retryable else 0
        failed[kind] += 1
        if limit == 0:
            raise error
        waited = clock.monotonic() - started
        if (limit is not None and failed[kind] > limit) or waited + wait >= patience.deadline:
            raise _gave_up(error, sent, waited)
        log.debug("%s %s: %s; trying again in %.2f s", request.method, request.path, error, wait)
        yield Sleep(wait)
        if clock.monotonic() - started >= patience.deadline:  # the sleep took longer than asked
            raise _gave_up(error, sent, clock.monotonic() - started)


def _gave_up(error: SIEError, sent: int, waited: float) -> SIEError:
    """The same error, saying how long was tried."""
    error.message = (
        f"{error.message} [gave up after {sent} {'try' if sent == 1 else 'tries'} in {waited:.1f} s]"
    )
    return error


def _retry_wait(outcome: Outcome, failures: int, clock: Clock) -> float:
    """Seconds until the next try: what the server asked for, verbatim; else jittered exponential backoff.

    A Retry-After of zero leaves the choice to us: taken literally it would make a hot loop against a busy
    server.
    """
    asked = retry_after(outcome.headers.get("retry-after"), clock) if isinstance(outcome, Reply) else None
    if asked:
        return asked
    most: float = min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** min(failures, 16))
    return most * (0.5 + 0.5 * clock.random())  # never near zero, and clients that failed together part


def retry_after(value: str | None, clock: Clock) -> float | None:
    """A Retry-After header, in seconds or as an HTTP date → seconds from now; None if unreadable."""
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        return _seconds_until(value, clock)
    return number if math.isfinite(number) and number >= 0 else None


def _seconds_until(date: str, clock: Clock) -> float | None:
    from datetime import UTC
    from email.utils import parsedate_to_datetime

    try:
        moment = parsedate_to_datetime(date)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - clock.wall())


def error_of(outcome: Outcome, request: Request, url: str) -> SIEError:
    """What an attempt that did not succeed means."""
    if isinstance(outcome, Reply):
        return _error_of_reply(outcome, request, url)
    if not isinstance(outcome, Failure):
        raise TypeError(f"a Send was answered with {outcome!r}")
    where, detail = f"{request.method} {url}{request.path}", outcome.detail or outcome.kind
    if outcome.kind == "timeout":
        return SIETimeoutError(f"{where}: no answer in time ({detail})")
    if outcome.kind == "connect":
        message = f"cannot connect to {url}: {detail}; is the server running there, and is base_url right?"
        return SIEConnectionError(message, retryable=True)
    if outcome.kind == "dropped":
        return SIEConnectionError(f"{where}: the connection was dropped ({detail})", retryable=True)
    return SIEConnectionError(f"{where}: the answer broke off ({detail})")


def _error_of_reply(reply: Reply, request: Request, url: str) -> SIEError:
    body = _error_map(reply.body)
    code = body.get("code")
    message = body.get("message") or _plain_message(reply, request, url)
    return error_for(
        reply.status,
        code if isinstance(code, str) else reply.headers.get("x-sie-error-code"),
        str(message),
        request_id=reply.request_id,
        details=body,
    )


def _error_map(body: bytes) -> dict[str, Any]:
    """The server's error map: `error`, else `detail`, else the top level; empty for anything else."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    for name in ("error", "detail"):
        if isinstance(value.get(name), dict):
            return {"code": value.get("code"), **value[name]}
    words = value.get("message") or value.get("detail") or value.get("error")
    return {**value, "message": str(words)} if words else value


def _plain_message(reply: Reply, request: Request, url: str) -> str:
    """For answers without a message of ours: proxies, other programs on the port."""
    text = " ".join(reply.body[:200].decode("utf-8", "replace").split())
    target = f" to {reply.headers['location']}" if "location" in reply.headers else ""
    where = f"{request.method} {url}{request.path}"
    return f"{where} was answered with status {reply.status}{target}: {text or 'no body'}"
