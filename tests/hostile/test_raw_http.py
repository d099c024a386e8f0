"""500 odd HTTP requests over sockets: each gets an HTTP answer that follows the contract, or a clean close."""

from __future__ import annotations

import contextlib
import select
import socket
from concurrent.futures import ThreadPoolExecutor

from support.hostile import wire
from support.hostile.contract import fault_of
from support.hostile.raw_forms import Raw, forms
from support.hostile.scale import STALL_S, scaled
from support.hostile.targets import Observed

COUNT = scaled(500, 5_000)
SOON_S = 0.3  # after this time without an answer, the server waits for more bytes


def outcome(port: int, raw: Raw) -> tuple[str, str | None]:
    """Send the request, and end the connection if nothing comes back; return status or `closed`, and the fault."""
    with wire.connect(port) as connection:
        try:
            with contextlib.suppress(ConnectionError):
                wire.send(connection, raw.sent)
                waits = b"100-continue" in raw.sent  # an answer that is not the last one
                if waits or not wire.ready(connection, select.POLLIN, SOON_S):
                    connection.shutdown(socket.SHUT_WR)
            answer = wire.read_answer(connection, is_head=raw.sent.startswith(b"HEAD "))
        except OSError:
            return "closed", None
        except AssertionError as error:
            return "fault", str(error)
    if answer is None:
        return "closed", None
    if raw.sent.startswith(b"HEAD "):
        return str(answer.status), None  # no body to check
    target = raw.sent.split(b" ")[1].decode("latin-1") if raw.sent.count(b" ") > 1 else ""
    return str(answer.status), fault_of(answer.status, answer.headers, answer.body, target)


def test_odd_requests(observed: Observed) -> None:
    port, sent = observed.server.port, forms(COUNT)
    assert len(sent) == COUNT
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda raw: outcome(port, raw), sent))
    statuses = [status for status, _ in outcomes]
    print({status: statuses.count(status) for status in sorted(set(statuses))})
    faults = [
        f"{raw.name} {raw.sent[:300]!r}: {fault}"
        for raw, (_, fault) in zip(sent, outcomes, strict=True)
        if fault
    ]
    assert not faults, f"{len(faults)} of {COUNT} answers, such as\n" + "\n".join(faults[:20])
    assert {"200", "400", "404"} <= set(statuses), "the forms no longer reach the routes"
    assert observed.server.process.poll() is None
    assert observed.server.get("/healthz").text == "ok"
    assert wire.exchange(port, wire.head("GET", "/readyz"), STALL_S) is not None
