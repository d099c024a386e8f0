"""Clients that are odd but mean well: what each sends is answered, or refused with a message about its real cause.

Bodies and heads go over raw sockets to one server. A JDK and curl send the same request with their own HTTP/2 upgrade.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.servers import programs
from support.servers.loopback import Loopback, answer, listening, send

BODY = json.dumps({"model": "sie/mini-en", "query": "rain", "documents": ["rain falls", "stars"]}).encode()
TEXT = BODY.decode()
JSON = b"Content-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Loopback]:
    with listening(max_body_mb=1, max_bodies_mb=8) as server:
        assert server.send(request()).status_code == 200  # the model is loaded
        yield server


def request(
    body: bytes = BODY,
    target: bytes = b"/v1/rerank",
    head: bytes = b"",
    *,
    method: bytes = b"POST",
    version: bytes = b"HTTP/1.1",
    host: bytes = b"Host: localhost\r\n",
    media: bytes = JSON,
) -> bytes:
    length = b"Content-Length: %d\r\n\r\n" % len(body)
    return b"%s %s %s\r\n" % (method, target, version) + host + media + head + length + body


def chunked(body: bytes, coding: bytes, *, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    head = b"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: %s\r\n\r\n" % coding
    return head + b"%x%s\r\n%s\r\n0\r\n%s\r\n" % (len(body), extension, body, trailers)


def raw_deflate(body: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(body) + stream.flush()


def compressed(body: bytes, coding: bytes) -> bytes:
    return request(body, head=b"Content-Encoding: %s\r\n" % coding)


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAA\r\n"
ANSWERED = {
    "gzip": compressed(gzip.compress(BODY), b"gzip"),
    "gzip of two members": compressed(gzip.compress(BODY[:9]) + gzip.compress(BODY[9:]), b"X-GZIP"),
    "gzip padded with zeros": compressed(gzip.compress(BODY) + bytes(7), b"gzip"),
    "deflate": compressed(zlib.compress(BODY), b"deflate"),
    "deflate without zlib's header": compressed(raw_deflate(BODY), b"Deflate"),
    "identity": compressed(BODY, b"identity"),
    "a byte order mark": request(b"\xef\xbb\xbf" + BODY),
    "a line break at the end": request(BODY + b"\r\n"),
    "a NUL character": request(BODY.replace(b"stars", rb"a\u0000b")),
    "an emoji as escapes": request(BODY.replace(b"stars", rb"\ud83d\ude00")),
    "an emoji as CESU-8": request(BODY.replace(b"stars", b"\xed\xa0\xbd\xed\xb8\x80")),
    "Hangul next to the surrogates": request(BODY.replace(b"stars", "\ud7ff\ue000".encode())),
    "text like half a surrogate": request(BODY.replace(b"stars", rb"\\ud83d")),
    "a charset in quotes": request(media=b'Content-Type: application/json;charset="UTF-8"\r\n'),
    "another charset over ASCII": request(media=b"Content-Type: application/json; charset=iso-8859-1\r\n"),
    "text/plain": request(media=b"Content-Type: text/plain\r\n"),
    "the media type of curl -d": request(media=b"Content-Type: application/x-www-form-urlencoded\r\n"),
    "no media type": request(media=b""),
    "h2c": request(head=UPGRADE),
    "h2c in lower case": request(head=UPGRADE.lower().replace(b"aaeaaeaaaaiaaaaa", b"AAEAAEAAAAIAAAAA")),
    "TLS by upgrade": request(head=b"Connection: upgrade\r\nUpgrade: TLS/1.3, HTTP/1.1\r\n"),
    "chunk extensions": chunked(BODY, b"chunked", extension=b';a="b;c"'),
    "trailers": chunked(BODY, b"chunked", trailers=b"X-Checksum: abc\r\n"),
    "Chunked": chunked(BODY, b"Chunked"),
    "doubled slashes": request(target=b"//v1//rerank"),
    "a slash at the end": request(target=b"/v1/rerank/"),
    "both": request(target=b"///v1/rerank///"),
    "an encoded path": request(target=b"/%76%31/rerank"),
    "an encoded slash": request(target=b"/v1%2Frerank"),
    "a query": request(target=b"/v1/rerank?api-version=2024-01-01&x=%zz"),
    "a fragment": request(target=b"/v1/rerank#top"),
    "an absolute address": request(target=b"http://localhost:1/v1/rerank"),
    "HTTP/1.0": request(version=b"HTTP/1.0", host=b""),
    "HTTP/1.0 keep-alive": request(version=b"HTTP/1.0", head=b"Connection: keep-alive\r\n"),
    "close": request(head=b"connection: CLOSE\r\n"),
    "an IPv6 host": request(host=b"Host: [::1]:8080\r\n"),
    "no host": request(host=b""),
    "an empty host": request(host=b"Host:\r\n"),
    "header names in odd case": request(media=b"cOnTeNt-TyPe: APPLICATION/JSON\r\n"),
    "an empty Accept": request(head=b"Accept:\r\n"),
    "a browser's Accept": request(head=b"Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\n"),
    "an unknown expectation": request(head=b"Expect: 200-ok\r\n"),
}
REFUSED = {
    "TLS": (bytes.fromhex("16030100c8010000c40303") + bytes(200), 400, "http:// instead of https://"),
    "HTTP/2 without asking": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 400, "use HTTP/1.1"),
    "a form": (request(b"--x\r\n"), 400, "invalid character"),
    "NaN": (request(BODY[:-1] + b', "top_n": NaN}'), 400, "invalid character"),
    "gzip without its header": (request(gzip.compress(BODY)), 400, "send the header Content-Encoding: gzip"),
    "br": (compressed(b"\x0b\x02", b"br"), 415, "'br'"),
    "zstd": (compressed(b"\x28\xb5\x2f\xfd", b"zstd"), 415, "gzip, deflate"),
    "gzip twice": (compressed(gzip.compress(gzip.compress(BODY)), b"gzip, gzip"), 415, "gzip, deflate"),
    "plain text as gzip": (compressed(BODY, b"gzip"), 400, "header Content-Encoding names"),
    "half of a gzip": (compressed(gzip.compress(BODY)[:-9], b"gzip"), 400, "ends before its gzip data"),
    "bytes after deflate": (compressed(zlib.compress(BODY) + b"x", b"deflate"), 400, "1 bytes follow"),
    "a large body in a small one": (compressed(gzip.compress(bytes(2**21)), b"gzip"), 413, "1 MiB"),
    "UTF-16": (request(TEXT.encode("utf-16")), 400, "UTF-16"),
    "UTF-16 without a mark": (request(TEXT.encode("utf-16-be")), 400, "UTF-16"),
    "UTF-32": (request(TEXT.encode("utf-32")), 400, "UTF-32"),
    "Latin-1": (request(BODY.replace(b"stars", b"na\xefve")), 400, "not valid UTF-8"),
    "Latin-1 by its name": (
        request(BODY.replace(b"rain", b"na\xefve", 1), media=JSON[:-2] + b"; charset=iso-8859-1\r\n"),
        400,
        "charset 'iso-8859-1'",
    ),
    "a cut character": (request(BODY.replace(b"stars", b"\xf0\x9f\x98")), 400, "not valid UTF-8"),
    "10,000 halves": (request(BODY.replace(b"stars", rb"\ud83d" * 10_000)), 400, "surrogate"),
    "v2 below v1": (request(target=b"/v1/v2/rerank"), 404, "did you mean /v2/rerank?"),
    "v1 below v1": (request(target=b"/v1/v1/embeddings"), 404, "did you mean /v1/embeddings?"),
    "a route below itself": (request(target=b"/rerank/v1/rerank"), 404, "did you mean /v1/rerank?"),
    "capital letters": (request(target=b"/V1/Rerank"), 404, "did you mean /v1/rerank?"),
    "OPTIONS": (request(b"", method=b"OPTIONS"), 405, "OPTIONS is not allowed"),
    "an address without a path": (request(target=b"http://localhost"), 400, "without a path"),
    "a path that is not ASCII": (request(target="/v1/models/é".encode()), 400, "char in url path"),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERED)
def test_an_odd_request_is_answered(server: Loopback, name: str) -> None:
    response = server.send(ANSWERED[name])
    assert response.status_code == 200, response.text
    assert (
        response.json()["data"][0]["index"] == 0 if "data" in response.json() else response.json()["results"]
    )
    assert "x-sie-warnings" not in response.headers


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_cause(server: Loopback, name: str) -> None:
    sent, status, reason = REFUSED[name]
    response = server.send(sent)
    assert response.status_code == status and reason in response.text, response.text
    assert response.headers["x-sie-error-code"]
    assert response.headers.get("accept-encoding") == ("gzip, deflate" if status == 415 else None)


HALVES = {
    rb"\ud83d": "\ufffd",
    rb"\udE00": "\ufffd",
    rb"x\uDBFF\n": "x\ufffd\n",
    rb"\\\ud83d": "\\\ufffd",
    rb"\ud83d\ud83d\ude00": "\ufffd\U0001f600",
}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("route", ["/v1/rerank", "/v1/embeddings", "/v1/score/sie/mini-en"])
def test_half_a_surrogate_costs_only_its_text(server: Loopback, half: bytes, route: str) -> None:
    """The other texts get the scores and vectors that they have without it."""
    whole = {
        "/v1/rerank": BODY,
        "/v1/embeddings": b'{"model": "sie/mini-en", "input": ["rain falls", "stars"]}',
        "/v1/score/sie/mini-en": b'{"query": {"text": "a"}, "items": [{"text": "rain falls"}, {"text": "stars"}]}',
    }[route]
    head = b"Accept: application/json\r\n"
    replaced = json.dumps(HALVES[half]).strip('"').encode()
    expected = server.send(request(whole.replace(b"stars", replaced), route.encode(), head))
    response = server.send(request(whole.replace(b"stars", half), route.encode(), head))
    assert response.status_code == expected.status_code == 200, response.text
    assert "U+FFFD: 1;" in json.loads(response.headers["x-sie-warnings"])[0]
    assert numbers(response.json()) == pytest.approx(numbers(expected.json()), abs=1e-5)


def numbers(body: dict[str, Any]) -> list[float]:
    """Return all scores or vectors of an answer."""
    entries = body.get("data") or body.get("results") or body["scores"]
    if "embedding" in entries[0]:
        return [number for entry in entries for number in entry["embedding"]]
    return [entry.get("relevance_score", entry.get("score")) for entry in entries]


def test_warnings_of_the_body_and_of_the_dialect_are_one_list(server: Loopback) -> None:
    body = BODY.replace(b"stars", rb"\ud83d")[:-1] + b', "unknown": 1}'
    warnings = json.loads(server.send(request(body)).headers["x-sie-warnings"])
    assert "U+FFFD" in warnings[0] and "unknown" in warnings[1]


@pytest.mark.parametrize(
    "path", [b"/v1/models", b"/v1/models/sie%2Fmini-en", b"/healthz/", b"/docs", b"/openapi.json"]
)
def test_head_has_the_headers_of_get_and_no_body(server: Loopback, path: bytes) -> None:
    answers = {}
    for method in (b"HEAD", b"GET"):
        with server.connect() as connection:
            send(connection, request(b"", path, b"Connection: close\r\n", method=method, media=b""))
            answers[method] = answer(connection, method.decode())
    head, get = answers[b"HEAD"], answers[b"GET"]
    assert head.status_code == get.status_code == 200 and not head.content and get.content
    assert head.headers["content-type"] == get.headers["content-type"]


def test_a_client_that_waits_for_permission_gets_it(server: Loopback) -> None:
    with server.connect() as connection:
        whole = request(head=b"Expect: 100-continue\r\n")
        send(connection, whole[: -len(BODY)])
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        send(connection, BODY)
        assert answer(connection).status_code == 200


JAVA = """
import java.net.URI;
import java.net.http.*;

public class Client {
    public static void main(String[] args) throws Exception {
        var body = HttpRequest.BodyPublishers.ofString(args[1]);
        var request = HttpRequest.newBuilder(URI.create(args[0])).POST(body).build();
        var answer = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(answer.statusCode() + " " + answer.version() + " " + answer.body());
    }
}
"""


def test_a_jdk(server: Loopback, tmp_path: Path) -> None:
    java = shutil.which("java")
    if java is None:
        pytest.skip("Java is not installed")  # in CI, too: curl sends the same upgrade
    source = tmp_path / "Client.java"
    source.write_text(JAVA, encoding="utf-8")
    ran = subprocess.run(
        [java, str(source), f"{server.base_url}/v1/rerank", TEXT], capture_output=True, text=True, timeout=120
    )
    if "compiler" in ran.stderr:  # a runtime without a compiler cannot run a source file
        pytest.skip("this Java has no compiler")
    assert ran.stdout.startswith("200 HTTP_1_1 {"), ran.stdout + ran.stderr


@pytest.mark.parametrize("option", ["--http2", "--compressed", "--http1.0", "-HTransfer-Encoding: chunked"])
def test_curl(server: Loopback, option: str) -> None:
    curl = programs.found("curl", "curl")
    command = [curl, "-s", option, f"{server.base_url}/v1/rerank", "-d", TEXT]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert '"object"' in ran.stdout, ran.stdout + ran.stderr
