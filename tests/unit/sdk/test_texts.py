"""`TextClient`: texts are identified by position, and each must have exactly one score."""

from __future__ import annotations

import asyncio
import logging
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

from sie_sdk.errors import AuthError, ProtocolError
from sie_sdk.texts import Ranked, TextClient, in_order, numbered
from support.waiting import until


def result(*entries: tuple[str | None, float], **more: Any) -> Any:
    scores = [{"item_id": item, "score": score, "rank": rank} for rank, (item, score) in enumerate(entries)]
    return {"model": "m", "scores": scores, **more}


def test_positions_are_ids() -> None:
    assert numbered(["a", "a"]) == [{"id": "0", "text": "a"}, {"id": "1", "text": "a"}]
    assert in_order(result(("1", 0.5), ("0", 0.5)), 2) == [Ranked(1, 0.5, None), Ranked(0, 0.5, None)]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([("0", 0.9)], "1 of 2 texts have no score"),
        ([("0", 0.9), ("0", 0.8)], "'0' was not sent or already has a score"),
        ([("0", 0.9), ("2", 0.8)], "'2' was not sent"),
        ([("0", 0.9), (None, 0.8)], "None was not sent"),
        ([("0", 0.9), ("1", float("nan"))], "the score of item '1' is nan"),
    ],
)
def test_anything_but_one_score_each_is_an_error(entries: list[tuple[str | None, float]], words: str) -> None:
    with pytest.raises(ProtocolError, match=words) as error:
        in_order(result(*entries, request_id="r-1"), 2)
    assert error.value.request_id == "r-1"


def test_warnings_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sie_sdk"):
        in_order(result(("0", 0.1), warnings=["a text was cut"]), 1)
    assert caplog.messages == ["score: a text was cut"]


def test_an_invalid_setting_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="base_url"):
        TextClient("localhost:8080")
    with pytest.raises(ValueError, match="timeout"):
        TextClient(timeout=0)


def test_it_can_be_pickled_with_its_connections_open() -> None:
    client = TextClient("http://127.0.0.1:9", "secret", 3.0)
    client._client()
    copy = pickle.loads(pickle.dumps(client))  # noqa: S301  what was pickled just now
    assert copy._arguments == client._arguments
    client.close()
    client.close()  # closing twice is harmless


def test_connections_belong_to_their_event_loop() -> None:
    client = TextClient("http://127.0.0.1:9")

    async def opened() -> int:
        first, again = client._async_client(), client._async_client()
        assert first is again
        await client.aclose()
        assert client._async_client() is not first
        return id(first)

    asyncio.run(opened())
    asyncio.run(opened())


async def test_no_request_is_sent_without_texts() -> None:
    client = TextClient("http://127.0.0.1:9")  # no server listens there
    assert client.rank("m", "q", []) == client.embed("m", []) == []
    assert await client.arank("m", "q", []) == await client.aembed("m", []) == []


async def test_waiting_does_not_block_the_event_loop(loopback: Callable[..., Any]) -> None:
    proceed = threading.Semaphore(0)

    def slow(handler: Any, _: int) -> None:
        proceed.acquire(timeout=10)
        handler.send_response(401)
        handler.send_header("content-length", "0")
        handler.end_headers()

    server = loopback(slow)
    client = TextClient(server.url)
    for number, call in enumerate((client.arank("m", "q", ["a"]), client.aembed("m", ["a"])), 1):
        waiting = asyncio.ensure_future(call)
        await until(lambda: len(server.seen) == number)  # noqa: B023
        assert not waiting.done()  # a call that blocks the loop would have ended
        proceed.release()
        with pytest.raises(AuthError):
            await waiting
    await client.aclose()
