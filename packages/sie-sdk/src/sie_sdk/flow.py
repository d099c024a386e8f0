"""The protocol of a request without I/O, shared by both clients.

`exchange` is a generator. It yields `Send` (send this request; resume with a `Reply` or a `Failure`) and `Sleep` (wait;
resume with None), and returns the 200 reply or raises a SIEError. It implements retries, backoff, deadline and the
mapping to errors; the clients only carry out the steps. Clock and random source are arguments, so tests never sleep.
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
    """A request. `path` is relative to the base URL and percent-encoded."""

    method: Literal["GET", "POST"]
    path: str
    accept: str
    body: bytes | None = None
    content_type: str | None = None


@dataclass(frozen=True)
class Send:
    """Step: send the request, and allow at most `timeout` seconds of silence."""

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

    connect: no connection was established. dropped: it ended before the answer began. broken: it ended in
    the middle of the answer. timeout: no data arrived in time after the request was sent.
    """

    kind: Literal["connect", "dropped", "broken", "timeout"]
    detail: str


Step: TypeAlias = Send | Sleep
Outcome: TypeAlias = Reply | Failure | None
Flow: TypeAlias = Generator[Step, Outcome, Reply]


@dataclass(frozen=True)
class Clock:
    """The sources of time and randomness."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time  # epoch seconds, for Retry-After as a date
    random: Callable[[], float] = random.random  # in [0, 1)


@dataclass(frozen=True)
class Patience:
    """Limits in seconds: `timeout` for one attempt, `deadline` for all. `url` is used in messages."""

    timeout: float
    deadline: float
    url: str


# Number of retries for each transient condition; None: until the deadline. All other errors are raised immediately.
RETRIES: dict[type[SIEError], int | None] = {
    ModelLoadingError: None,
    QueueFullError: None,
    RateLimitedError: None,
    ResourceExhaustedError: 3,
    SIEConnectionError: 2,  # three attempts, so that a wrong URL is reported soon
}
BACKOFF_FIRST = 0.25  # seconds
BACKOFF_MOST = 8.0


def exchange(request: Request, patience: Patience, clock: Clock) -> Flow:
    """Send `request` until it is answered or a limit is reached. Returns the 200 reply; raises SIEError."""
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
            failed.pop(SIEConnectionError, None)  # the server is reachable: a later restart is counted anew
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
        if clock.monotonic() - started >= patience.deadline:  # the sleep took longer than requested
            raise _gave_up(error, sent, clock.monotonic() - started)


def _gave_up(error: SIEError, sent: int, waited: float) -> SIEError:
    """Add the number of attempts and the time to the error's message."""
    tries = "try" if sent == 1 else "tries"
    error.message = f"{error.message} [gave up after {sent} {tries} in {waited:.1f} s]"
    return error


def _retry_wait(outcome: Outcome, failures: int, clock: Clock) -> float:
    """Return the seconds until the next attempt: the server's Retry-After, else exponential backoff with jitter.

    A Retry-After of zero is ignored, because it would lead to a busy loop against an overloaded server.
    """
    if isinstance(outcome, Reply) and (requested := retry_after(outcome.headers.get("retry-after"), clock)):
        return requested
    most: float = min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** min(failures, 16))
    return most * (0.5 + 0.5 * clock.random())  # spreads out clients that failed together


def retry_after(value: str | None, clock: Clock) -> float | None:
    """Convert a Retry-After header, seconds or an HTTP date, to seconds from now; None if it is invalid."""
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
    """Return the exception for a failed attempt."""
    if isinstance(outcome, Reply):
        return _error_of_reply(outcome, request, url)
    if not isinstance(outcome, Failure):
        raise TypeError(f"a Send was answered with {outcome!r}")
    where, detail = f"{request.method} {url}{request.path}", outcome.detail or outcome.kind
    if outcome.kind == "timeout":
        return SIETimeoutError(f"{where}: no answer in time ({detail})")
    if outcome.kind == "connect":
        message = (
            f"cannot connect to {url}: {detail}; check that the server is running and that base_url is right"
        )
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
    """Return the server's error map: `error`, else `detail`, else the top level; empty if the body has none."""
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
    """Return a message for an answer without an error map, for instance from a proxy."""
    text = " ".join(reply.body[:200].decode("utf-8", "replace").split())
    target = f" to {reply.headers['location']}" if "location" in reply.headers else ""
    where = f"{request.method} {url}{request.path}"
    return f"{where} was answered with status {reply.status}{target}: {text or 'no body'}"
