"""The retry protocol, driven with simulated time: when it sends, how long it waits, and which errors it raises."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from sie_sdk import errors
from sie_sdk.flow import Clock, Failure, Patience, Reply, Request, Send, Sleep, exchange

REQUEST = Request("POST", "/v1/score/org/name", "application/msgpack", b"body", "application/msgpack")
OK = Reply(200, {}, b"fine")
EPOCH = 1_750_000_000.0  # Sun, 15 Jun 2025 15:06:40 GMT


@dataclass
class Run:
    """Runs one flow with given answers; `took` is the duration of each Send in seconds."""

    outcomes: Iterable[Reply | Failure]
    timeout: float = 150.0
    deadline: float = 900.0
    took: float = 0.0
    chance: float = 0.5
    oversleep: float = 0.0
    answered: bool = False
    give_up: float = math.inf
    now: float = 1000.0
    sends: list[Send] = field(default_factory=list)
    sleeps: list[float] = field(default_factory=list)

    def result(self) -> Reply:
        start = self.now
        clock = Clock(
            lambda: self.now, lambda: EPOCH + self.now - start, lambda: self.chance, lambda: "sdk-" + "0" * 32
        )
        patience = Patience(self.timeout, self.deadline, "http://host:8080", self.answered, self.give_up)
        flow = exchange(REQUEST, patience, clock)
        answers = iter(self.outcomes)
        step: Any = next(flow)
        try:
            while True:
                if isinstance(step, Sleep):
                    self.sleeps.append(step.seconds)
                    self.now += step.seconds + self.oversleep
                    step = flow.send(None)
                else:
                    self.sends.append(step)
                    self.now += self.took
                    step = flow.send(next(answers))
        except StopIteration as done:
            return done.value

    def error(self) -> errors.SIEError:
        with pytest.raises(errors.SIEError) as caught:
            self.result()
        return caught.value


def refusal(status: int, code: str | None = None, retry_after: str | None = None, **more: Any) -> Reply:
    """An error response (docs/http-api.md#errors)."""
    error = {"code": code, "message": f"about {code}", **more}
    headers = {"x-sie-request-id": "req-1", "x-sie-server-version": "1.0"} | (
        {} if retry_after is None else {"retry-after": retry_after}
    )
    return Reply(status, headers, json.dumps({"detail": error, "error": error, "code": code}).encode())


def always(outcome: Reply | Failure) -> Iterable[Reply | Failure]:
    return iter(lambda: outcome, None)


LOADING = refusal(503, "MODEL_LOADING", "5")


def test_an_answer_at_once_is_one_send_with_the_full_timeout() -> None:
    run = Run([OK])
    assert run.result() is OK
    assert run.sends == [Send(REQUEST, 150.0, 900.0, "sdk-" + "0" * 32)]
    assert run.sleeps == []


@pytest.mark.parametrize(
    "status_code", [(503, "MODEL_LOADING"), (503, "QUEUE_FULL"), (429, "RATE_LIMITED"), (429, None)]
)
def test_passing_conditions_are_retried_until_the_answer(status_code: tuple[int, str | None]) -> None:
    run = Run([refusal(*status_code, retry_after="7")] * 20 + [OK])
    assert run.result() is OK
    assert run.sleeps == [7.0] * 20


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (503, "MODEL_LOADING", errors.ModelLoadingError),
        (503, "QUEUE_FULL", errors.QueueFullError),
        (429, "RATE_LIMITED", errors.RateLimitedError),
    ],
)
def test_passing_conditions_raise_if_the_next_try_would_be_past_the_deadline(
    status: int, code: str, kind: type
) -> None:
    run = Run(always(refusal(status, code, "100")))
    error = run.error()
    assert type(error) is kind
    assert run.sleeps == [100.0] * 8  # a ninth would end at 900 s
    assert run.now == 1800.0
    assert error.retryable
    assert error.message == f"about {code} [gave up after 9 tries in 800.0 s]"


def test_a_retry_after_beyond_the_deadline_is_not_slept_through() -> None:
    run = Run(always(LOADING), deadline=4.0)
    assert isinstance(run.error(), errors.ModelLoadingError)
    assert run.sleeps == []


def test_a_sleep_that_took_too_long_ends_the_call() -> None:
    run = Run(always(LOADING), deadline=6.0, oversleep=10.0)
    assert isinstance(run.error(), errors.ModelLoadingError)
    assert len(run.sends) == 1


def test_an_attempt_never_waits_beyond_the_deadline() -> None:
    run = Run([LOADING, LOADING, OK], deadline=20.0, took=4.0)
    run.result()
    assert [(send.timeout, send.left) for send in run.sends] == [(20.0, 20.0), (11.0, 11.0), (2.0, 2.0)]


def test_resource_exhausted_is_retried_three_times() -> None:
    run = Run(always(refusal(503, "RESOURCE_EXHAUSTED", "1")))
    error = run.error()
    assert isinstance(error, errors.ResourceExhaustedError)
    assert run.sleeps == [1.0] * 3
    assert "4 tries" in error.message
    assert Run([refusal(503, "RESOURCE_EXHAUSTED", "1")] * 3 + [OK]).result() is OK


def test_loading_in_between_does_not_renew_the_three_retries() -> None:
    exhausted = refusal(503, "RESOURCE_EXHAUSTED", "1")
    run = Run([exhausted, exhausted, LOADING, exhausted, exhausted, OK])
    assert isinstance(run.error(), errors.ResourceExhaustedError)
    assert len(run.sends) == 5


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (refusal(400, "INVALID_INPUT"), errors.RequestError),
        (refusal(400, "INPUT_TOO_LONG"), errors.InputTooLongError),
        (refusal(413, "INPUT_TOO_LONG"), errors.InputTooLongError),
        (refusal(413), errors.InputTooLongError),
        (refusal(401, "UNAUTHORIZED"), errors.AuthError),
        (refusal(403, "FORBIDDEN"), errors.AuthError),
        (refusal(404, "MODEL_NOT_FOUND"), errors.ModelNotFoundError),
        (refusal(404), errors.RequestError),
        (refusal(422), errors.RequestError),
        (refusal(500, "INFERENCE_ERROR"), errors.InferenceError),
        (refusal(500, "ELSE"), errors.ServerError),
        (refusal(502, "MODEL_LOAD_FAILED", "1"), errors.ModelLoadFailedError),
        (refusal(502, None, "1"), errors.ServerError),
        (refusal(503, "LORA_LOADING", "1"), errors.ServerError),
        (refusal(503, None, "1"), errors.ServerError),
        (refusal(500, "MODEL_LOADING", "1"), errors.ServerError),
        (refusal(504, None, "1"), errors.ServerError),
        (refusal(204), errors.ProtocolError),
        (refusal(307), errors.ProtocolError),
    ],
)
def test_everything_else_raises_at_once(reply: Reply, kind: type) -> None:
    run = Run([reply])
    error = run.error()
    assert type(error) is kind
    assert (error.status, error.request_id) == (reply.status, "req-1")
    assert not error.retryable
    assert "gave up" not in error.message
    assert run.sleeps == []


# ── waiting ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("5", 5.0),
        ("0.25", 0.25),
        ("600", 600.0),
        ("Sun, 15 Jun 2025 15:07:10 GMT", 30.0),
        ("Sun, 15 Jun 2025 17:07:10 +0200", 30.0),
    ],
)
def test_retry_after_is_honoured_verbatim(header: str, seconds: float) -> None:
    run = Run([refusal(503, "QUEUE_FULL", header), OK], chance=0.9)
    run.result()
    assert run.sleeps == [seconds]


RETRY_AFTER_UNUSABLE = [
    *(None, "soon", "-3", "nan", "inf", "0", "", "1e9", "0x10", "1_0", "+5", "٣", "5 s", "9" * 400),
    "Sun, 15 Jun 2025 15:06:00 GMT",
    "Mon, 01 Jan 2024 00:00:00 +99999999999999999999",
    f"Mon, 01 Jan {'9' * 30} 00:00:00 GMT",
    "Mon, 00 Jan 2024 99:00:00 GMT",
]


@pytest.mark.parametrize("header", RETRY_AFTER_UNUSABLE)
def test_without_a_usable_retry_after_backoff_decides(header: str | None) -> None:
    run = Run([refusal(503, "QUEUE_FULL", header), OK], chance=0.5)
    run.result()
    assert run.sleeps == [0.1875]  # 0.25 s × (0.5 + 0.5 · 0.5)


def test_backoff_doubles_to_a_ceiling() -> None:
    run = Run([refusal(503, "QUEUE_FULL")] * 8 + [OK], chance=0.0)
    run.result()
    assert run.sleeps == [0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 4.0, 4.0]


def test_backoff_is_jittered_over_its_upper_half() -> None:
    for chance, seconds in ((0.0, 0.125), (0.5, 0.1875), (0.999, 0.249875)):
        run = Run([refusal(503, "QUEUE_FULL"), OK], chance=chance)
        run.result()
        assert run.sleeps == [pytest.approx(seconds)]


def test_backoff_survives_thousands_of_retries() -> None:
    run = Run([refusal(503, "QUEUE_FULL")] * 3000 + [OK], deadline=1e6)
    assert run.result() is OK
    assert max(run.sleeps) <= 8.0


# ── no answer ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["connect", "dropped"])
def test_no_connection_is_tried_three_times(kind: Any) -> None:
    run = Run(always(Failure(kind, "refused")))
    error = run.error()
    assert type(error) is errors.SIEConnectionError
    assert len(run.sends) == 3
    assert run.sleeps == [0.1875, 0.375]
    assert error.retryable
    assert error.status is None
    assert "http://host:8080" in error.message
    assert "refused" in error.message
    assert Run([Failure(kind, "")] * 2 + [OK]).result() is OK


def test_an_answer_resets_the_connection_tries() -> None:
    down = Failure("connect", "refused")
    run = Run([down, down, LOADING, down, down, OK])
    assert run.result() is OK


@pytest.mark.parametrize(
    "down", [Failure("connect", "refused"), Failure("dropped", "reset"), Reply(502, {}, b"<p>")]
)
@pytest.mark.parametrize("met", ["earlier", "in this call"])
def test_a_server_that_has_answered_is_waited_for(down: Any, met: str) -> None:
    before = [] if met == "earlier" else [LOADING]
    run = Run([*before, *[down] * 30, OK], answered=met == "earlier")
    assert run.result() is OK
    assert 1 <= max(run.sleeps[len(before) :]) <= 2.0  # a server may be back only for a short time
    tired = Run(always(down), answered=True, deadline=60.0)
    error = tired.error()
    assert isinstance(error, errors.SIEConnectionError | errors.ServerError)
    assert error.retryable
    assert 50 < tired.now - 1000 < 60


def test_a_proxys_answer_counts_as_dropped_and_its_retry_after_is_honoured() -> None:
    html = Reply(503, {"retry-after": "9", "content-type": "text/html"}, b"<h1>Service Unavailable</h1>")
    json_body = Reply(500, {}, b'{"code": "BadGateway", "message": "upstream"}')
    assert len((run := Run(always(json_body))).sends) == 0 and "upstream" in run.error().message
    assert len(run.sends) == 3  # this client never had an answer of the server
    run = Run([html, html, html, OK], answered=True)
    assert run.result() is OK
    assert run.sleeps == [9.0] * 3


def test_a_5xx_of_a_server_behind_a_proxy_that_strips_headers_is_the_servers() -> None:
    failed = Reply(
        500, {}, b'{"code": "INFERENCE_ERROR", "error": {"code": "INFERENCE_ERROR", "message": "NaN"}}'
    )
    run = Run([failed], answered=True)
    assert type(run.error()) is errors.InferenceError
    assert len(run.sends) == 1


def test_an_answer_that_breaks_off_is_tried_three_times() -> None:
    run = Run(always(Failure("broken", "half")), answered=True)
    error = run.error()
    assert type(error) is errors.SIEConnectionError
    assert "broke off (half)" in error.message
    assert len(run.sends) == 3
    assert Run([Failure("broken", "half"), OK]).result() is OK


def test_no_attempt_starts_after_the_callers_own_limit() -> None:
    run = Run(always(refusal(503, "QUEUE_FULL", "2")), give_up=5.0)
    assert isinstance(run.error(), errors.QueueFullError)
    assert run.sleeps == [2.0, 2.0]
    slow = Run([refusal(503, "QUEUE_FULL", "1"), OK], give_up=2.0, took=0.9)
    assert slow.result() is OK  # an attempt that has started is not cut short


def test_only_an_id_of_this_sdk_can_be_anothers() -> None:
    step = Send(REQUEST, 1.0, 1.0, "sdk-" + "a" * 32)
    for answered, belongs in (
        ("sdk-" + "a" * 32, True),
        ("sdk-" + "b" * 32, False),
        ("0b1e6f", True),
        (None, True),
    ):
        headers = {} if answered is None else {"x-sie-request-id": answered}
        assert step.belongs(Reply(200, headers, b"")) is belongs
    assert len({Clock().request_id() for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("timeout", errors.SIETimeoutError),
        ("invalid", errors.SIEConnectionError),
        ("wrong", errors.ProtocolError),
    ],
)
def test_other_failures_are_never_retried(kind: Any, error: type) -> None:
    run = Run([Failure(kind, "why")])
    raised = run.error()
    assert type(raised) is error
    assert not raised.retryable
    assert "POST http://host:8080/v1/score/org/name" in raised.message
    assert "why" in raised.message


# ── error bodies ────────────────────────────────────────────────────────────────────────────


def body(value: Any) -> Reply:
    return Reply(400, {}, value if isinstance(value, bytes) else json.dumps(value).encode())


@pytest.mark.parametrize(
    ("value", "message", "code"),
    [
        (
            {"error": {"code": "A", "message": "a"}, "detail": {"code": "B", "message": "b"}, "code": "C"},
            "a",
            "A",
        ),
        ({"detail": {"code": "B", "message": "b"}, "code": "C"}, "b", "B"),
        ({"detail": {"message": "b"}, "code": "C"}, "b", "C"),
        ({"code": "C", "message": "c"}, "c", "C"),
        ({"detail": "Not Found"}, "Not Found", None),
        ({"detail": [{"loc": ["body"], "msg": "missing"}]}, "[{'loc': ['body'], 'msg': 'missing'}]", None),
        ({"error": {"code": 7, "message": "m"}}, "m", None),
    ],
)
def test_message_and_code_are_found(value: Any, message: str, code: str | None) -> None:
    error = Run([body(value)]).error()
    assert (error.message, error.code) == (message, code)


@pytest.mark.parametrize(
    "raw", [b"", b"<html>Bad  Gateway</html>", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000, b"{}"]
)
def test_bodies_of_other_programs_still_make_an_error_with_the_address(raw: bytes) -> None:
    error = Run([body(raw)]).error()
    assert type(error) is errors.RequestError
    assert "POST http://host:8080/v1/score/org/name was answered with status 400" in error.message
    assert len(error.message) < 400


def test_the_code_may_be_in_the_header_alone() -> None:
    reply = Reply(503, {"x-sie-error-code": "QUEUE_FULL", "retry-after": "1"}, b"")
    assert Run([reply, OK]).result() is OK


def test_load_failures_carry_the_details_of_the_server() -> None:
    reply = refusal(502, "MODEL_LOAD_FAILED", error_class="OSError", permanent=False, attempts=2)
    error = Run([reply]).error()
    assert isinstance(error, errors.ModelLoadFailedError)
    assert (error.error_class, error.permanent, error.attempts, error.retryable) == (
        "OSError",
        False,
        2,
        True,
    )
    assert str(error) == "about MODEL_LOAD_FAILED (502 MODEL_LOAD_FAILED, request req-1)"


def test_a_request_id_with_characters_beyond_visible_ascii_is_dropped() -> None:
    for value in ("a b", "a\u00e4", "", "a\x1b[31m"):
        assert Reply(400, {"x-sie-request-id": value}, b"").request_id is None
    assert Reply(400, {"x-sie-request-id": "01J-x_y"}, b"").request_id == "01J-x_y"
