"""A response's head is sent with the start of its body, and never stays behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sie_server.api.edge.connections.exchange import MOST_JOINED, Outgoing

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class Transport:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.write = self.sent.append

    def is_closing(self) -> bool:
        return False


def outgoing(method: str = "POST") -> tuple[Any, Any, list[bytes]]:
    """Return the transport of a response, the cycle that writes to it, and what is sent."""
    transport, cycle = Transport(), SimpleNamespace(response_started=False, scope={"method": method})
    return (
        Outgoing(transport, cycle, lambda: transport.sent.append(b"closed")),  # type: ignore[arg-type]
        cycle,
        transport.sent,
    )


@pytest.mark.parametrize("body", [b"", b"{}", b"x" * MOST_JOINED])
def test_head_and_body_are_sent_together(body: bytes) -> None:
    out, cycle, sent = outgoing()
    cycle.response_started = True
    out.write(HEAD)
    assert sent == []
    out.write(body)
    out.write(b"more")
    assert sent == [HEAD + body, b"more"]


def test_a_large_body_is_not_copied() -> None:
    out, cycle, sent = outgoing()
    cycle.response_started = True
    out.write(HEAD)
    body = b"x" * (MOST_JOINED + 1)
    out.write(body)
    assert sent == [HEAD, body] and sent[1] is body


def test_the_head_of_a_response_without_a_body_is_sent_at_once() -> None:
    out, cycle, sent = outgoing("HEAD")
    cycle.response_started = True
    out.write(HEAD)
    assert sent == [HEAD]


def test_a_request_to_continue_does_not_wait_for_the_response() -> None:
    out, cycle, sent = outgoing()
    out.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert sent == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    cycle.response_started = True
    out.write(HEAD)
    out.write(b"{}")
    assert sent[1:] == [HEAD + b"{}"]


def test_the_head_of_a_response_that_breaks_off_is_sent_before_the_end() -> None:
    out, cycle, sent = outgoing()
    cycle.response_started = True
    out.write(HEAD)
    out.close()
    assert sent == [HEAD, b"closed"]
