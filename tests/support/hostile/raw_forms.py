"""Odd HTTP requests as bytes: every part of a request that two parsers could read differently."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

SCORE = "/v1/score/sie/mini-en"
BODY = json.dumps({"query": {"text": "a"}, "items": [{"text": "b"}]}).encode()
FORM = Callable[[random.Random], bytes]


@dataclass(frozen=True)
class Raw:
    """One request; `sent` is everything that the client sends."""

    name: str
    sent: bytes


METHODS = [
    b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT", b"PRI", b"get",
    b"G E T", b"GET\x00", b"G\xc3\x89T", b"", b"\r\nGET", b" GET", b"GET\t", b"SEARCH", b"PROPFIND",
    b"M-SEARCH", b"A" * 200, b"[",
]  # fmt: skip
VERSIONS = [
    b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.2", b"HTTP/9.9", b"HTTP/1", b"HTTP/",
    b"http/1.1", b"", b"HTTP/1.1 ", b"HTTP/1.1\x00", b"HTTP/11.1", b"HTTP/-1.1", b"RTSP/1.0",
    b"HTTP/1.1 extra", b"HTTPS/1.1", b"ICE/1.0",
]  # fmt: skip
TARGETS = [
    b"/healthz", b"/", b"*", b"", b"healthz", b"//healthz", b"/../healthz", b"/%2e%2e/etc/passwd", b"/%",
    b"/%zz", b"/%00", b"/\x00", b"/v1/models/%ff%fe", b"/v1/models/\xc3\xa9", b"/v1/models/\xff",
    b"/v1/models/%E2%82", b"/v1/models/", b"http://localhost/healthz", b"http://x:99999/healthz",
    b"https://[::1/healthz", b"http://", b"localhost:80", b"/a b", b"/healthz?%", b"/healthz?a=%00&b",
    b"/healthz#part", b"/v1/score/", b"/v1/score//", b"/v1/score/%2F%2F", b"/healthz/",
    b"/docs/static/..%2f..%2fetc/passwd", b"/docs/static/%00", b"/docs/static/" + b"a" * 5000,
    b"/docs/static/\xff", b"?", b"/v1/models/" + b"%41" * 2000, b"/v1/models/a:b:c",
    b"/v1/models/%0d%0aX:%20y", b"ws://x/", b"/;a=b", b"/\\..\\",
]  # fmt: skip
HEADERS = [
    b"Host: localhost\r\nHost: other", b"Host:", b"Host: a b", b"Host: \x00", b"Host: \xff", b"X : y",
    b" X: y", b"X: y\r\n folded", b"X", b": y", b"X:\x00", b"X: \x01\x7f", b"X\x00: y", b"\xc3\xa9: y",
    b"X: \xc3\xa9", b"X:" + b" " * 9000, b"Connection: close, keep-alive", b"Connection: upgrade",
    b"Connection: Host", b"Expect: 100-continue", b"Expect: 999-other", b"Accept: ;;;,,,q=",
    b"Accept: " + b"application/json;q=0.1," * 300, b"Accept: */*;q=nan", b"Authorization: Bearer \xff",
    b"Authorization: Bearer", b"Authorization: Basic " + b"a" * 5000, b"X-Forwarded-For: \xff",
    b"Origin: \xff", b"Content-Type: \xff", b"Content-Type: application/msgpack, application/json",
    b"Upgrade: h2c", b"X-SIE-Request-ID: \xff", b"X-SIE-Request-ID: " + b"a" * 500, b"X-SIE-Request-ID: a\tb",
    b"Range: bytes=0-", b"Content-Encoding: gzip", b"TE: trailers", b"Trailer: Content-Length",
    b"X-SIE-Deadline-Ms: -1", b"X-SIE-Deadline-Ms: nan", b"X-SIE-Deadline-Ms: " + b"9" * 400,
    b"If-None-Match: \xff", b"If-Modified-Since: never", b"Range: bytes=" + b"0-," * 500,
    b"Cookie: " + b"a=b;" * 500,
]  # fmt: skip
LENGTHS = [
    b"-1", b"+5", b"0x10", b" 5 ", b"5,5", b"5\r\nContent-Length: 6", b"5\r\nContent-Length: 5", b"", b"abc",
    b"1e3", b"5.0", b"0" * 5000 + b"%d", b"0" * 50 + b"%d", b"9" * 30, b"9" * 5000, b"18446744073709551616",
    b"\xd9\xa5", b"%d\x00", b"%d;x", b"%d\t", b"%d, %d", b"2147483648", b"0", b"1_0", b"--5", b"\xb2",
]  # fmt: skip
CHUNKED = [
    b"%x\r\n%s\r\n0\r\n\r\n", b"%X;ext=1\r\n%s\r\n0\r\n\r\n", b"0x%x\r\n%s\r\n0\r\n\r\n",
    b"-1\r\n%s\r\n0\r\n\r\n", b"+%x\r\n%s", b"zz\r\n%s\r\n0\r\n\r\n", b"%x\n%s\n0\n\n",
    b" %x\r\n%s\r\n0\r\n\r\n", b"ffffffffffffffff\r\n%s", b"%x\r\n%sX\r\n0\r\n\r\n",
    b"%x\r\n%s\r\n0\r\nContent-Length: 3\r\n\r\n", b"%x\r\n%s\r\n0\r\n\x00: y\r\n\r\n", b"0\r\n\r\n", b"\r\n",
    b"0" * 500 + b"%x\r\n%s\r\n0\r\n\r\n", b"%x \r\n%s\r\n0\r\n\r\n",
    b"%x;" + b"e" * 5000 + b"\r\n%s\r\n0\r\n\r\n", b"1\r\n{\r\n" * 50 + b"0\r\n\r\n",
]  # fmt: skip
CODINGS = [
    b"chunked", b"Chunked", b"gzip, chunked", b"chunked, gzip", b"chunked, chunked", b"identity", b"xchunked",
    b" chunked", b"chunked\r\nContent-Length: 5", b"\x0bchunked", b"chunked;q=1", b"",
    b"chunked\r\nTransfer-Encoding: identity",
]  # fmt: skip
WHITE = [b"\n", b"\r", b"\r\r\n", b"\r\n", b"\x0b\x0c", b"\t", b" ", b"\x85", b"\x00", b"\r\n\r\n\r\n"]


def formed(method: bytes, target: bytes, version: bytes, *lines: bytes, end: bytes = b"\r\n") -> bytes:
    """Return the head of a request."""
    start = b" ".join((method, target, version))
    return end.join([start, b"Host: localhost", b"Connection: close", *lines, b"", b""])


def odd_start(rng: random.Random) -> bytes:
    return formed(rng.choice(METHODS), rng.choice([b"/healthz", SCORE.encode(), b"/v1/models"]), b"HTTP/1.1")


def odd_version(rng: random.Random) -> bytes:
    return formed(b"GET", b"/healthz", rng.choice(VERSIONS))


def odd_target(rng: random.Random) -> bytes:
    return formed(rng.choice([b"GET", b"OPTIONS", b"CONNECT", b"HEAD"]), rng.choice(TARGETS), b"HTTP/1.1")


def odd_headers(rng: random.Random) -> bytes:
    lines = rng.sample(HEADERS, rng.randint(1, 3))
    if rng.random() < 0.5:
        return formed(
            b"GET",
            rng.choice([b"/healthz", b"/v1/models", b"/docs/static/swagger-ui.css"]),
            b"HTTP/1.1",
            *lines,
        )
    return formed(b"POST", SCORE.encode(), b"HTTP/1.1", b"Content-Length: %d" % len(BODY), *lines) + BODY


def odd_length(rng: random.Random) -> bytes:
    length = rng.choice(LENGTHS).replace(b"%d", b"%d" % len(BODY))
    return formed(b"POST", SCORE.encode(), b"HTTP/1.1", b"Content-Length: " + length) + BODY


def odd_chunks(rng: random.Random) -> bytes:
    chunks = (
        rng.choice(CHUNKED)
        .replace(b"%x", b"%x" % len(BODY))
        .replace(b"%X", b"%X" % len(BODY))
        .replace(b"%s", BODY)
    )
    coding = rng.choice([b"chunked", b"chunked", rng.choice(CODINGS)])
    return formed(b"POST", SCORE.encode(), b"HTTP/1.1", b"Transfer-Encoding: " + coding) + chunks


def odd_white(rng: random.Random) -> bytes:
    """Replace one separator of an ordinary request."""
    request = formed(b"POST", SCORE.encode(), b"HTTP/1.1", b"Content-Length: %d" % len(BODY)) + BODY
    places = [i for i, byte in enumerate(request[: -len(BODY)]) if byte in b" \r\n:"]
    place = rng.choice(places)
    return request[:place] + rng.choice(WHITE) + request[place + 1 :]


def cut(rng: random.Random) -> bytes:
    request = odd_headers(rng)
    return request[: rng.randrange(len(request))]


def flipped(rng: random.Random) -> bytes:
    request = bytearray(
        formed(b"POST", SCORE.encode(), b"HTTP/1.1", b"Content-Length: %d" % len(BODY)) + BODY
    )
    for _ in range(rng.randint(1, 4)):
        request[rng.randrange(len(request))] = rng.randrange(256)
    return bytes(request)


def line_feeds(rng: random.Random) -> bytes:
    return (
        formed(b"GET", b"/healthz", b"HTTP/1.1", end=rng.choice([b"\n", b"\r", b"\n\r", b"\r\n\t"])) + b"\n\n"
    )


def smuggled(rng: random.Random) -> bytes:
    """Return a body that could be read as a second request."""
    second = formed(b"GET", b"/v1/models", b"HTTP/1.1")
    line = rng.choice(
        [b"Content-Length: 0", b"Transfer-Encoding: chunked", b"Content-Length: %d" % len(second), b"X: y"]
    )
    return formed(rng.choice([b"GET", b"POST", b"HEAD"]), b"/healthz", b"HTTP/1.1", line) + second


def garbage(rng: random.Random) -> bytes:
    tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    return rng.choice(
        [
            tls,
            preface,
            b"SSH-2.0-x\r\n",
            b"\x00" * 100,
            b"\xff" * 100,
            rng.randbytes(200),
            b"GET /healthz\r\n\r\n",
        ]
    )


FORMS: list[FORM] = [
    odd_start, odd_version, odd_target, odd_headers, odd_length, odd_chunks, odd_white, cut, flipped,
    line_feeds, smuggled, garbage,
]  # fmt: skip


def forms(count: int, seed: int = 11) -> list[Raw]:
    """Return `count` different requests, as many of each form as possible."""
    rng, found = random.Random(seed), dict[bytes, Raw]()
    for i in range(20 * count):
        form = FORMS[i % len(FORMS)]
        sent = form(rng)
        found.setdefault(sent, Raw(f"{form.__name__} {len(found)}", sent))
        if len(found) == count:
            break
    return list(found.values())
