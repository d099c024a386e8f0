"""The protocol of a request without I/O, shared by both clients.

`exchange` is a generator. It yields `Send` (send this request; resume with a `Reply` or a `Failure`) and `Sleep` (wait;
resume with None), and returns the 200 reply or raises a SIEError. It implements retries, backoff, deadline and the
mapping to errors; the clients only carry out the steps. Clock and random source are arguments, so tests never sleep.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sie_sdk.errors import (
    CODES,
    ModelLoadFailedError,
    ProtocolError,
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
    """Step: send the request as `request_id`, allow `timeout` seconds of silence and `left` seconds in all."""

    request: Request
    timeout: float
    left: float
    request_id: str

    def belongs(self, reply: Reply) -> bool:
        """Return whether the reply may be this request's: its id is ours, or one that a server made."""
        answered = reply.request_id
        return answered is None or not OWN_ID.fullmatch(answered) or answered == self.request_id


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
    def from_server(self) -> bool:
        """Whether a SIE server wrote it. A 5xx without version and known code comes from a proxy in front of one."""
        return (
            not 500 <= self.status < 600
            or "x-sie-server-version" in self.headers
            or _code(_error_map(self.body), self) in CODES
        )

    @property
    def request_id(self) -> str | None:
        """X-SIE-Request-ID, unless it holds more than visible ASCII."""
        value = self.headers.get("x-sie-request-id", "")
        return value if re.fullmatch(r"[!-~]{1,256}", value) else None


@dataclass(frozen=True)
class Failure:
    """No complete answer.

    connect: no connection was established. dropped: it ended before the answer began. broken: it ended in the middle of
    the answer. timeout: no data arrived in time after the request was sent. invalid: the request cannot be sent. wrong:
    the answer belongs to another request, or is longer than any answer may be.
    """

    kind: Literal["connect", "dropped", "broken", "timeout", "invalid", "wrong"]
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
    request_id: Callable[[], str] = lambda: (
        f"sdk-{os.urandom(16).hex()}"
    )  # differs between processes after a fork


@dataclass(frozen=True)
class Patience:
    """Limits in seconds: `timeout` for one attempt, `deadline` for all. `url` is used in messages.

    answered: this client has had an answer of this server, so it is worth waiting while it restarts. give_up: seconds
    after which no attempt starts, because the caller has no use for a later answer.
    """

    timeout: float
    deadline: float
    url: str
    answered: bool = False
    give_up: float = math.inf


RESOURCE_RETRIES = 3
BROKEN_RETRIES = 2  # an answer that breaks off each time, for instance at a proxy's limit, is reported soon
FIRST_RETRIES = 2  # of a client that never had an answer, so that a wrong URL is reported soon
OWN_ID = re.compile(r"sdk-[0-9a-f]{32}")
BACKOFF_FIRST = 0.25  # seconds
BACKOFF_MOST = 8.0
UNREACHABLE_MOST = 2.0  # a refused connection costs little, and a server may be back only for a short time


def exchange(request: Request, patience: Patience, clock: Clock) -> Flow:
    """Send `request` until it is answered or a limit is reached. Returns the 200 reply; raises SIEError."""
    started = clock.monotonic()
    until = min(patience.deadline, patience.give_up)
    answered, sent = patience.answered, 0
    failed: Counter[str] = Counter()
    while True:
        left = patience.deadline - (clock.monotonic() - started)
        outcome = yield Send(request, min(patience.timeout, left), left, clock.request_id())
        sent += 1
        if isinstance(outcome, Reply):
            if outcome.status == 200:
                return outcome
            if outcome.from_server:
                answered = True
                failed.pop("unreachable", None)  # a later restart is counted anew
        error = error_of(outcome, request, patience.url)
        if not error.retryable or isinstance(
            error, ModelLoadFailedError
        ):  # the server tries that one again itself
            raise error
        condition, limit = limit_of(error, outcome, answered)
        most = UNREACHABLE_MOST if condition == "unreachable" else BACKOFF_MOST
        wait = _retry_wait(outcome, failed.total(), most, clock)
        failed[condition] += 1
        waited = clock.monotonic() - started
        if failed[condition] > limit or waited + wait >= until:
            raise _gave_up(error, sent, waited)
        log.debug("%s %s: %s; trying again in %.2f s", request.method, request.path, error, wait)
        yield Sleep(wait)
        if clock.monotonic() - started >= until:  # the sleep took longer than requested
            raise _gave_up(error, sent, clock.monotonic() - started)


def limit_of(error: SIEError, outcome: Outcome, answered: bool) -> tuple[str, float]:
    """Return the transient condition and its number of retries; infinite: until the deadline."""
    if isinstance(error, ResourceExhaustedError):
        return "exhausted", RESOURCE_RETRIES
    if isinstance(outcome, Failure) and outcome.kind == "broken":
        return "broken", BROKEN_RETRIES
    if isinstance(outcome, Failure) or (isinstance(outcome, Reply) and not outcome.from_server):
        return "unreachable", math.inf if answered else FIRST_RETRIES
    return "busy", math.inf


def _gave_up(error: SIEError, sent: int, waited: float) -> SIEError:
    """Add the number of attempts and the time to the error's message."""
    tries = "try" if sent == 1 else "tries"
    error.message = f"{error.message} [gave up after {sent} {tries} in {waited:.1f} s]"
    return error


def _retry_wait(outcome: Outcome, failures: int, most: float, clock: Clock) -> float:
    """Return the seconds until the next attempt: the server's Retry-After, else exponential backoff with jitter.

    most: the longest backoff.
    A Retry-After of zero is ignored, because it would lead to a busy loop against an overloaded server.
    """
    if isinstance(outcome, Reply) and (requested := retry_after(outcome.headers.get("retry-after"), clock)):
        return requested
    backoff = min(most, BACKOFF_FIRST * 2.0 ** min(failures, 16))
    return backoff * (0.5 + 0.5 * clock.random())  # spreads out clients that failed together


def retry_after(value: str | None, clock: Clock) -> float | None:
    """Convert a Retry-After header, seconds or an HTTP date, to seconds from now; None if it is invalid."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,15}(\.\d{1,9})?", value.strip(), re.ASCII):
        return float(value)
    return _seconds_until(value, clock)


def _seconds_until(date: str, clock: Clock) -> float | None:
    from datetime import UTC
    from email.utils import parsedate_to_datetime

    try:
        moment = parsedate_to_datetime(date)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, moment.timestamp() - clock.wall())
    except (ValueError, OverflowError):
        return None


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
    if outcome.kind == "broken":
        return SIEConnectionError(f"{where}: the answer broke off ({detail})", retryable=True)
    if outcome.kind == "wrong":
        return ProtocolError(f"{where}: {detail}")
    return SIEConnectionError(f"{where}: the request could not be sent ({detail})")


def _error_of_reply(reply: Reply, request: Request, url: str) -> SIEError:
    body = _error_map(reply.body)
    message = body.get("message") or _plain_message(reply, request, url)
    error = error_for(
        reply.status, _code(body, reply), str(message), request_id=reply.request_id, details=body
    )
    if not reply.from_server:
        error.retryable = True  # a proxy's answer while the server is away
    return error


def _code(body: Mapping[str, Any], reply: Reply) -> str | None:
    code = body.get("code")
    return code if isinstance(code, str) else reply.headers.get("x-sie-error-code")


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
