"""`sie-server bench` against endpoints that answer wrongly, hang, refuse, redirect or go away."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sie_server.cli.commands import cli
from sie_server.loadtest.dialects import DIALECTS
from sie_server.loadtest.errors import LoadTestError
from sie_server.loadtest.report import percentile
from sie_server.loadtest.target import Target
from sie_server.loadtest.texts import Texts, pool

Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


@contextmanager
def endpoint(answer: Answer) -> Iterator[str]:
    """Serve POST requests with `answer`, which gets the handler and the decoded body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            answer(self, json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # clients of these tests hang up

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def reply(handler: BaseHTTPRequestHandler, content: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("content-length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def results(count: int) -> bytes:
    return json.dumps({"results": [{"index": i, "relevance_score": 0.5} for i in range(count)]}).encode()


def right(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    reply(handler, results(len(body["documents"])))


def with_content(content: str, status: int = 200, **headers: str) -> Answer:
    return lambda handler, body: reply(handler, content.encode(), status, **headers)


def bench(url: str, *options: str, dialect: str = "jina", env: dict[str, str] | None = None) -> Result:
    command = ["bench", "--endpoint", url, "--dialect", dialect, "--model", "m", "--documents", "3"]
    bounds = ["--clients", "2", "--seconds", "30", "--requests", "6", "--timeout", "20"]
    return CliRunner(env=env).invoke(cli, [*command, *bounds, *options])


def hang(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    time.sleep(1)


def hang_up(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    handler.close_connection = True


def no_http(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    handler.close_connection = True


def drip_header(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    for byte in b"HTTP/1.1 200 OK and many more words that take longer than the longest time limit":
        handler.wfile.write(bytes([byte]))
        time.sleep(0.1)


def drip_body(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    for _ in range(30):
        handler.wfile.write(b" ")
        time.sleep(0.1)


def cut_short(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")
    handler.close_connection = True


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (with_content("<html>hello"), "not JSON: the answer starts with '<html>hello'"),
        (with_content("[" * 100_000), "not JSON: the answer starts with"),
        (with_content('{"data": []}'), "no results: `results` is not a list"),
        (with_content("[]"), "no results: `results` is not a list"),
        (with_content('{"results": []}'), "wrong number of results: 0 results for 2 documents"),
        (
            with_content('{"results": [{"index": 0}, {"index": 1}]}'),
            "missing scores: `results[0].relevance_score` is not a finite number",
        ),
        (
            with_content(results(2).decode().replace("0.5", "NaN")),
            "missing scores: `results[0].relevance_score` is not a finite number",
        ),
        (
            with_content(results(2).decode().replace('"index": 1', '"index": 0')),
            "wrong results: `results` does not have each document once",
        ),
        (
            with_content(results(2).decode().replace('"index": 1', '"index": null')),
            "wrong results: `index` of result 1 is not a place in the request",
        ),
        (with_content('{"error": {"message": "no model\\nm"}}', 404), "HTTP 404: no model m"),
        (with_content("oh", 500), "HTTP 500: oh"),
        (with_content('{"detail": "later"}', 503), "HTTP 503: later"),
        (
            with_content('{"detail": "no key"}', 401),
            "HTTP 401: no key; name the environment variable that holds the key: --api-key-env NAME",
        ),
        (
            with_content("", 307, location="http://127.0.0.1:1/elsewhere"),
            "redirect 307: to http://127.0.0.1:1/elsewhere, which is not followed; name that URL if it is right",
        ),
        (hang, "timeout: no complete answer within 0.3 s"),
        (drip_body, "timeout: no complete answer within 0.3 s"),
        (drip_header, "timeout: no complete answer within 0.3 s"),
        (hang_up, "connection closed: the endpoint closed the connection before the end of its answer"),
        (cut_short, "connection closed: the endpoint closed the connection before the end of its answer"),
        (no_http, "no HTTP: SSH-2.0-OpenSSH_9.2"),
    ],
)
def test_an_endpoint_that_answers_wrongly_gets_one_line(answer: Answer, message: str) -> None:
    slow = ["--timeout", "0.3"] if "within 0.3 s" in message else []
    with endpoint(answer) as url:
        done = bench(url, *slow)
    assert done.exit_code == 1 and done.stdout == ""
    [line] = done.stderr.strip().splitlines()
    assert line.startswith(f"Error: {url}, dialect jina: {message}")


def test_a_closed_port_gets_one_line() -> None:
    with endpoint(right) as url:
        pass
    done = bench(url)
    assert done.exit_code == 1
    assert done.stderr == f"Error: {url}, dialect jina: connection refused: nothing listens at this address\n"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8080", "has no scheme http or https"),
        ("ftp://host", "has no scheme http or https"),
        ("http://", "names no host"),
        ("http://host:99999", "expected the form http://HOST:PORT"),
        ("http://host:port", "expected the form http://HOST:PORT"),
        ("http://[::1", "expected the form http://HOST:PORT"),
        ("http://ho st", "names no host"),
        ("http://user:secret@host", "name a key with --api-key-env"),
        ("http://host/?key=1", "has a query or fragment"),
    ],
)
def test_a_malformed_url_gets_one_line(url: str, message: str) -> None:
    done = bench(url)
    assert done.exit_code == 1 and message in done.stderr and "secret" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clients", "1,x"], "expected numbers from 1 to 256 with commas, such as 1,8,64"),
        (["--clients", "0"], "expected numbers from 1 to 256"),
        (["--clients", "1,1,1,1,1,1,1,1,1"], "at most 8 numbers"),
        (["--dialect", "soap"], "'soap' is not one of 'auto', 'sie', 'cohere-v2'"),
        (["--documents", "100000"], "1<=x<=1000"),
        (["--seconds", "1e9"], "0.1<=x<=600"),
        (["--api-key-env", "NOT_SET"], "the environment variable NOT_SET is not set"),
        (["--api-key-env", "BROKEN"], "the environment variable BROKEN has characters that a header cannot"),
    ],
)
def test_wrong_options_are_usage_errors(options: list[str], message: str) -> None:
    done = bench("http://127.0.0.1:1", *options, env={"BROKEN": "a\nb"})
    assert done.exit_code == 2 and message in done.stderr


def test_a_dialect_that_names_models_needs_one() -> None:
    done = CliRunner().invoke(cli, ["bench", "--endpoint", "http://127.0.0.1:1", "--dialect", "voyage"])
    assert done.exit_code == 1
    assert done.stderr == "Error: dialect voyage names the model in its requests; add --model ID\n"


def test_phases_report_latencies_and_no_failure() -> None:
    with endpoint(right) as url:
        done = bench(url, "--clients", "1,3", "--requests", "7", "--format", "json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["endpoint"], report["dialect"], report["path"]) == (url, "jina", "/v1/rerank")
    for phase, clients in zip(report["phases"], (1, 3), strict=True):
        assert phase["clients"] == clients and phase["requests"] == 7 and phase["failed"] == 0
        assert 0 < phase["p50_ms"] <= phase["p95_ms"] <= phase["p99_ms"] <= phase["max_ms"]
        assert phase["pairs_per_s"] > 0


def test_markdown_has_a_row_per_phase_and_names_failures() -> None:
    calls: list[int] = []

    def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        calls.append(1)
        if len(calls) == 3:
            reply(handler, b'{"detail": "busy"}', 503, retry_after="0")
        else:
            right(handler, body)

    with endpoint(answer) as url:
        done = bench(url, "--clients", "1", "--requests", "5", "--format", "markdown")
    assert done.exit_code == 0, done.output  # a refusal is a result, not a fault
    lines = done.stdout.splitlines()
    assert lines[0] == f"{url}, dialect jina, model m"
    assert re.fullmatch(r"\| 1 \| 3 \| 4 \| 1 \| [0-9.,]+ \| .* \|", lines[4])
    assert lines[-1] == "- 1 clients: 1 × HTTP 503: busy"


def test_an_endpoint_that_goes_away_ends_the_test() -> None:
    calls: list[int] = []

    def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        calls.append(1)
        (right if len(calls) < 5 else hang_up)(handler, body)

    with endpoint(answer) as url:
        done = bench(url, "--clients", "4,8", "--requests", "1000")
    assert done.exit_code == 1
    [row] = done.stdout.splitlines()  # the second phase does not begin
    assert row.split("\t")[:3] == ["4", "3", "3"]
    assert "4 clients: the endpoint stopped answering; the last failure: connection closed" in done.stderr


def test_an_endpoint_that_begins_to_hang_does_not_delay_the_end() -> None:
    calls: list[int] = []

    def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        calls.append(1)
        (drip_header if calls[1:] else right)(handler, body)

    with endpoint(answer) as url:
        done = bench(url, "--seconds", "0.5", "--timeout", "2")
    assert done.exit_code == 1 and "2 × timeout: no complete answer within 2 s" in done.stderr
    assert "2 requests failed for other reasons than load" in done.stderr


def test_wrong_answers_under_load_are_faults() -> None:
    calls: list[int] = []

    def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        calls.append(1)
        reply(handler, results(len(body["documents"]) - (len(calls) == 4)))

    with endpoint(answer) as url:
        done = bench(url, "--requests", "6")
    assert done.exit_code == 1
    assert "1 × wrong number of results: 2 results for 3 documents" in done.stderr


def test_the_probe_names_the_answers_of_all_dialects() -> None:
    with endpoint(with_content('{"detail": "Not Found"}', 404)) as url:
        done = bench(url, dialect="auto")
        unnamed = CliRunner().invoke(cli, ["bench", "--endpoint", url])
    assert done.exit_code == unnamed.exit_code == 1
    assert (
        "answers in no dialect that was tried (sie HTTP 404, tei HTTP 404, cohere-v2 HTTP 404," in done.stderr
    )
    assert unnamed.stderr.endswith("name it with --dialect, and the model with --model\n")


@pytest.mark.parametrize(("dialect", "header"), [("jina", "Authorization"), ("pinecone", "Api-Key")])
def test_a_key_is_sent_only_if_it_is_named(dialect: str, header: str) -> None:
    seen: list[str | None] = []

    def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        seen.append(handler.headers.get(header))
        reply(handler, results(2))

    with endpoint(answer) as url:
        for options in ([], ["--api-key-env", "MY_KEY"]):
            bench(url, *options, dialect=dialect, env={"MY_KEY": "k1", "SIE_API_KEY": "k2"})
    assert seen[0] is None
    assert seen[-1] == ("Bearer k1" if header == "Authorization" else "k1")


def test_a_url_may_end_with_the_path_of_the_dialect() -> None:
    jina = DIALECTS["jina"]
    assert Target.of("https://host/v1/rerank/").at(jina.path) == "/v1/rerank"
    assert Target.of("https://host/prefix").at(jina.path) == "/prefix/v1/rerank"
    assert Target.of("http://[::1]:80/a").shown == "http://[::1]:80/a"
    with pytest.raises(LoadTestError):
        Target.of("")


def test_no_two_requests_are_equal_and_lengths_are_as_said() -> None:
    first, second = (next(iter(Texts(50, 0, client, 12))) for client in (0, 1))
    assert first[0] != second[0] and not set(first[1]) & set(second[1])
    assert {len(text.split()) for text in first[1]} == {12}
    assert next(iter(Texts(50, 0, 0, 12))) == first
    lengths = sorted(len(text.split()) for text in pool(1, None))
    assert 50 <= lengths[len(lengths) // 2] <= 70 and lengths[-1] <= 162 and lengths[0] < 30


def test_percentiles_of_few_values() -> None:
    assert percentile([], 50) is None
    assert percentile([0.002], 99) == 2.0
    assert percentile([0.0, 0.1], 50) == pytest.approx(50)
