"""Errors and timings that cross processes."""

from __future__ import annotations

import pickle
import time
from typing import Any

import msgspec
import pytest

pytest.importorskip("ray")

from sie_server.api.dialects.fields import Fields
from sie_server.api.embeddings.tokens import decode, tokenize
from sie_server.cluster.outcomes import Context, Failure, Outcome, outcome_of
from sie_server.errors import InvalidInput, ModelLoadFailed, QueueFull, SIEError
from sie_server.serving.metrics import RequestTiming
from sie_server.wire import ChunkSpan, Document, ScoreEntry, ScoreResponse, Usage

pytestmark = pytest.mark.unit


async def failing(error: SIEError) -> None:
    raise error


@pytest.mark.parametrize(
    "error",
    [
        QueueFull("busy", retry_after_s=3),
        ModelLoadFailed("no such file", error_class="OSError", permanent=True, attempts=1),
    ],
)
async def test_an_error_arrives_whole(error: SIEError) -> None:
    outcome = await outcome_of("r1", RequestTiming(), failing(error), lambda: {"/models/a"})
    found = pickle.loads(pickle.dumps(outcome))  # noqa: S301 -- as Ray does
    with pytest.raises(type(error)) as raised:
        found.result()
    assert vars(raised.value) == vars(error)
    assert found.sources == {"/models/a"}


def test_every_error_has_a_code_of_its_own() -> None:
    for kind in SIEError.__subclasses__():
        assert type(Failure(kind.code, "m", None, {}).error()) is kind


async def test_the_steps_of_a_traced_request_cross_clocks() -> None:
    async def work(timing: RequestTiming) -> str:
        timing.step("tokenize", timing.started, timing.started + 1, tokens=7)
        return "value"

    timing = RequestTiming(steps=[])
    there = Context.of(timing).timing()
    outcome = await outcome_of("r1", there, work(there), set)
    assert abs(outcome.steps[0].started - time.time()) < 60  # seconds since 1970, on any machine
    outcome.charge(timing)
    assert timing.steps is not None
    [step] = timing.steps
    assert step.ended - step.started == pytest.approx(1, abs=1e-3)
    assert abs(step.started - there.started) < 1e-3  # both clocks are those of this process
    assert step.attributes == {"tokens": 7, "sie.replica": "r1"}


async def test_a_request_that_is_not_traced_has_no_steps() -> None:
    async def work() -> None:
        there.step("tokenize", 0.0)

    there = Context.of(RequestTiming()).timing()
    outcome = await outcome_of("r1", there, work(), set)
    assert outcome.steps == () and there.steps is None


def test_the_deadline_crosses_clocks() -> None:
    timing = RequestTiming()
    timing.set_deadline(5000)
    context = Context.of(timing)
    assert context.deadline_ms is not None and 4000 < context.deadline_ms <= 5000
    deadline = context.timing().deadline
    assert deadline is not None


async def test_a_replica_refuses_a_request_that_its_key_may_never_send() -> None:
    async def work() -> None:
        there.count_tokens(601)

    timing = RequestTiming(most_tokens=600)
    there = Context.of(timing).timing()
    outcome = await outcome_of("r1", there, work(), set)
    with pytest.raises(InvalidInput, match="tokens_per_minute = 600"):
        outcome.result()
    outcome.charge(timing)
    assert timing.tokens == 601  # so the ingress sees why it was refused


@pytest.mark.parametrize(
    "response",
    [
        ScoreResponse("m", None, [], Usage(0), "probability"),
        ScoreResponse(
            "m",
            "q",
            [
                ScoreEntry("a", 0.1 + 0.2, 0, True, -1.5, ChunkSpan(0, 3, 1, 2), document=Document("\u2603")),
                ScoreEntry("b", 5e-324, 1),
            ],
            Usage(7),
            "logit",
            True,
            ["cut"],
            top_n=1,
        ),
    ],
)
def test_a_response_arrives_whole(response: ScoreResponse) -> None:
    found = pickle.loads(pickle.dumps(Outcome("r", response)))  # noqa: S301 -- as Ray does
    assert found.result() == response


@pytest.mark.parametrize(("read", "body"), [(tokenize, {"inputs": "a"}), (decode, {"ids": [1]})])
def test_the_work_on_tokens_can_be_pickled(read: Any, body: dict[str, Any]) -> None:
    work = read(Fields({name: msgspec.Raw(msgspec.json.encode(value)) for name, value in body.items()})).work
    found = pickle.loads(pickle.dumps(work))  # noqa: S301 -- as Ray does
    assert (found.func, found.keywords) == (work.func, work.keywords)
