"""Attacks with texts that cost more than ordinary ones, and with crowds of callers."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable

from support.hostile import wire
from support.hostile.attack import Attack, Report, repeated, together
from support.hostile.body_attacks import ENCODE, SCORE
from support.hostile.scale import MIB, scaled

SIZE = scaled(3, 12) * MIB
WORD = "".join(random.Random(7).choices("abcdefghijklmnopqrstuvwxyz", k=MIB))
UNITS = {  # repeated to `SIZE` bytes
    "blanks": " ",
    "line ends": "\n",
    "one letter": "a",
    "one word": WORD,
    "capitals with accents": "É",
    "combining marks": "\u0301\u0323",
    "emoji": "👩‍👩‍👧‍👦",
    "letters and one emoji": "a" * (MIB - 4) + "👩",  # four bytes per character in Python's memory
    "ideographs": "东京雨",
    "Hangul parts": "\u1112\u1161\u11ab",
    "control characters": "\x00\x01\u200b\ufeff",
    "punctuation": ".,;!",
    "digits": "0123456789",
    "ligatures that expand": "\ufdfa",  # one character that becomes 18
    "special tokens": "[SEP][CLS][MASK]",
    "short words": "a b ",
    "letters far apart": "a" + " " * 1000,
}
QUICK = ("blanks", "one word", "combining marks", "letters and one emoji")


def large(unit: str) -> str:
    return unit * (SIZE // len(unit.encode()))


def asked(text: str, documents: int = 1, **options: object) -> bytes:
    items = [{"text": text}] * documents
    return json.dumps({"query": {"text": "a"}, "items": items, "options": options}).encode()


def shape(unit: str) -> Callable[[Report], None]:
    """Return an attack with a large text as document, query, several documents, and text to encode."""
    return repeated(lambda: ways_to_send(large(unit)), callers=2)


def ways_to_send(text: str) -> list[bytes]:
    as_query = json.dumps({"query": {"text": text}, "items": [{"text": "a"}]}).encode()
    as_items = json.dumps({"items": [{"text": text}]}).encode()
    part = asked(text[: len(text) // 8], 8, long_document="chunk")
    requests = [(SCORE, asked(text)), (SCORE, as_query), (ENCODE, as_items), (SCORE, part)]
    return [wire.post(path, body) for path, body in requests[:: scaled(3, 1)]]


def leavers(unit: str) -> Callable[[Report], None]:
    """Return an attack by callers that hang up as soon as they have sent a large text."""

    def act(report: Report) -> None:
        request = wire.post(SCORE, asked(large(unit)))
        report.hold(scaled(4, 16) * len(request))

        def caller(number: int) -> None:
            while not report.over:
                with contextlib.suppress(OSError, wire.Stalled), wire.connect(report.port) as connection:
                    wire.send(connection, request)

        together(4, caller)

    return act


def crowd(callers: int, documents: int, *, patience: float | None = None) -> Callable[[Report], None]:
    """Return an attack by many callers, which hang up after `patience` seconds and ask again."""

    def act(report: Report) -> None:
        request = wire.post(SCORE, asked(WORDS, documents))
        report.hold(callers * max(len(request), 2**16))

        def caller(number: int) -> None:
            while not report.over:
                if patience is None:
                    report.send(request)
                    continue
                with contextlib.suppress(OSError, wire.Stalled), wire.connect(report.port) as connection:
                    wire.send(connection, request)
                    report.note(wire.read_answer(connection, patience))  # or leave

        together(callers, caller)

    return act


WORDS = "Stars burn hydrogen into helium for billions of years before they collapse. " * 4

ATTACKS = [
    *(Attack(f"text of {name}", shape(unit), quick=name in QUICK) for name, unit in UNITS.items()),
    Attack("large texts whose callers hang up", leavers(" ")),
    Attack("large words whose callers hang up", leavers(WORD), quick=True),
    Attack(
        "many empty documents",
        repeated(lambda: [wire.post(SCORE, asked("", scaled(50_000, 1_000_000)))]),
        quick=True,
    ),
    Attack("bulk requests", crowd(4, 2_000), refusing=True),
    Attack("crowd that waits", crowd(scaled(48, 128), 10), refusing=True),
    Attack("crowd that hangs up", crowd(scaled(48, 128), 10, patience=0.1), refusing=True, quick=True),
]
