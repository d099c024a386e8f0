"""`sie-server top`: the figures between two scrapes, and servers that stop or are none."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import click
import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from rich.console import Console

from sie_server.cli.commands import cli
from sie_server.cli.remote import Remote
from sie_server.cli.top.command import Watch, screen
from sie_server.cli.top.samples import Between, Scrape
from sie_server.cli.top.view import duration, number, sections

BUILD = 'sie_build_info{version="1.2.3"} 1.0\n'
MODEL = {"name": "org/a[b]", "state": "loaded", "memory_bytes": 3 * 2**20, "last_error": None}


def between(before: str, now: str, seconds: float = 2.0) -> Between:
    return Between(Scrape.of(BUILD + before, 10.0), Scrape.of(BUILD + now, 10.0 + seconds))


def counts(**totals: float) -> str:
    return "".join(f'sie_requests_total{{route="{route}"}} {total}\n' for route, total in totals.items())


def test_a_rate_is_the_growth_per_second() -> None:
    look = between(counts(score=10, encode=5), counts(score=30, encode=5))
    assert look.rate("sie_requests_total") == look.rate("sie_requests_total", route="score") == 10
    assert look.rate("sie_requests_total", route="encode") == look.rate("sie_no_such_total") == 0


def test_after_a_restart_counters_begin_at_zero() -> None:
    assert between(counts(score=1000), counts(score=8)).increase("sie_requests_total") == 8


def test_a_series_that_is_new_has_grown_from_zero() -> None:
    assert between("", counts(score=6)).rate("sie_requests_total") == 3


def observed(*values: float, name: str = "sie_x_seconds") -> str:
    registry = CollectorRegistry()
    histogram = Histogram(name, "", ["route"], buckets=(0.1, 1, 10), registry=registry)
    for value in values:
        histogram.labels("score").observe(value)
    return generate_latest(registry).decode()


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([0.05] * 10, 0.5, 0.05),  # in the middle of the first bucket
        ([0.5] * 10, 0.5, 0.55),
        ([0.05] * 5 + [5] * 5, 0.95, 9.1),  # nine tenths into the last of them
        ([100.0], 0.5, 10.0),  # beyond the last bound
        ([0.05] * 9 + [100.0], 0.99, 10.0),
    ],
)
def test_quantiles_are_those_of_prometheus(values: list[float], share: float, expected: float) -> None:
    assert between("", observed(*values)).quantile(share, "sie_x_seconds") == pytest.approx(expected)


def test_a_quantile_is_that_of_the_new_values() -> None:
    look = between(observed(*[5.0] * 100), observed(*[5.0] * 100, 0.05))
    assert look.quantile(0.95, "sie_x_seconds", route="score") == pytest.approx(0.095)
    assert look.mean("sie_x_seconds") == pytest.approx(0.05)
    same = between(observed(5.0), observed(5.0))
    assert same.quantile(0.5, "sie_x_seconds") is None and same.mean("sie_x_seconds") is None
    assert same.quantile(0.5, "sie_no_such_seconds") is None


def test_replicas_of_a_cluster_are_added_up() -> None:
    text = "".join(
        f'sie_build_info{{replica="{name}",version="1"}} 1\nsie_queue_seconds{{replica="{name}"}} {seconds}\n'
        f'sie_device_busy_seconds_total{{replica="{name}"}} {busy}\n'
        f'sie_memory_budget_bytes{{replica="{name}"}} 1048576\n'
        for name, seconds, busy in (("a", 1.5, 2), ("b", 0.5, 1))
    )
    text += 'sie_build_info{replica="ingress",version="1"} 1\n'  # which has no device
    empty = text.replace("} 2\n", "} 0\n").replace('total{replica="b"} 1', 'total{replica="b"} 0')
    look = Between(Scrape.of(empty, 0.0), Scrape.of(text, 2.0))
    found = dict(sections(look, [])[0].rows)
    assert found["queue"] == "2.0 s" and found["device busy"] == "75%"  # 3 s of work in 2 s on two devices
    assert found["version"] == "1"


def test_the_sections_of_a_look() -> None:
    errors = 'sie_errors_total{code="QUEUE_FULL"} 4\nsie_errors_total{code="CONFLICT"} 0\n'
    look = between(counts(score=0), counts(score=4) + errors + 'sie_tokens_total{model="org/a[b]"} 600\n')
    server, routes, models, failures = sections(look, [MODEL, {**MODEL, "state": "available"}])
    assert ("version", "1.2.3") in server.rows and ("requests/s", "2.0") in server.rows
    assert routes.rows == [("score", "2.0", "-", "-", "-", "-", "-")]
    assert models.rows == [("org/a[b]", "loaded", "3 MiB", "300", "-")]
    assert failures.rows == [("QUEUE_FULL", "2.0", "4")]


def test_figures_are_short() -> None:
    assert [number(value) for value in (0, 0.04, 3.14159, 99.94, 12345.6)] == [
        "0",
        "0.04",
        "3.1",
        "99.9",
        "12,346",
    ]
    assert [duration(value) for value in (None, 0.0042, 0.9994, 61.0)] == ["-", "4 ms", "999 ms", "61.0 s"]


# ── over HTTP ──


@contextmanager
def answering(pages: dict[str, str]) -> Iterator[str]:
    """Serve pages by their path; a page that is not in the dictionary drops the connection."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path in pages:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(pages[self.path].encode())
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def shown(watch: Watch) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(screen(watch))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_server_that_goes_away_is_one_line_until_it_is_back() -> None:
    pages = {"/metrics": BUILD + counts(score=7), "/v1/models": json.dumps({"models": [MODEL]})}
    with answering(pages) as url:
        watch = Watch(Remote(url))
        assert "org/a[b]" in shown(watch) and "Ctrl-C ends" in shown(watch)
        metrics = pages.pop("/metrics")
        gone = shown(watch)
        assert "trying again" in gone.splitlines()[0] and f"no answer from {url}" in gone
        assert "org/a[b]" in gone  # the last figures
        pages["/metrics"] = metrics
        assert "trying again" not in shown(watch)


PAGES = {
    "another program's metrics": {"/metrics": "go_goroutines 8\n"},
    "a web page": {"/metrics": "<html>welcome</html>"},
    "models of another program": {"/metrics": BUILD, "/v1/models": '{"data": []}'},
}


@pytest.mark.parametrize("name", PAGES)
def test_another_program_is_named_in_one_line(name: str) -> None:
    with answering(PAGES[name]) as url:
        result = CliRunner().invoke(cli, ["top", "--once", "--interval", "0.1", "--url", url])
    assert result.exit_code == 1 and result.stdout == ""
    assert (
        len(result.stderr.splitlines()) == 1
        and "is not an answer of a SIE server; check --url" in result.stderr
    )


def test_once_prints_lines_for_scripts() -> None:
    pages = {"/metrics": BUILD + counts(score=7), "/v1/models": json.dumps({"models": [MODEL]})}
    with answering(pages) as url:
        result = CliRunner().invoke(cli, ["top", "--once", "--interval", "0.1", "--url", url])
    assert result.exit_code == 0
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert ["server", "version", "1.2.3"] in rows
    assert ["models", "org/a[b]", "loaded", "3 MiB", "0", "-"] in rows


def test_without_a_terminal_once_is_required() -> None:
    result = CliRunner().invoke(cli, ["top"])
    assert result.exit_code == 2 and "for scripts use --once" in result.stderr


def test_no_server_at_the_start_is_an_error() -> None:
    with pytest.raises(click.ClickException, match=r"no answer from http://127\.0\.0\.1:9"):
        Watch(Remote("http://127.0.0.1:9")).look()
