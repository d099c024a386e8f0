"""The policies of the HTTP edge without a network: deadlines, seats, the budget, heads, paths and proxy headers."""

from __future__ import annotations

import resource

import httptools
import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from sie_server.api.app import create_app
from sie_server.api.edge.budget import MIB, Budget
from sie_server.api.edge.connections import heads, seats
from sie_server.api.edge.connections.deadlines import Transfer, head_deadline
from sie_server.api.edge.connections.heap import HeapTrim, trim
from sie_server.api.edge.connections.seats import Seats, Throttle, raise_open_files
from sie_server.api.edge.gate import Gate
from sie_server.api.edge.limits.pacing import MOST_S, Allowance, Pace
from sie_server.api.edge.paths import clean, route_meant
from sie_server.config import ConfigError, Secret, ServerConfig
from sie_server.errors import Forbidden, InputTooLong, QueueFull
from sie_server.serving.service import Service

INFER_KEY = "0123456789abcdef"

# ── deadlines ──


def test_a_body_gets_a_second_for_each_64_kib() -> None:
    transfer = Transfer(30)
    assert not transfer.overdue(10**9)
    transfer.start(100)
    assert not transfer.overdue(130) and transfer.overdue(130.1)
    transfer.moved(10 * 2**16, 101)
    assert not transfer.overdue(140) and transfer.overdue(140.1)
    transfer.start(1000)  # it has started already
    assert transfer.overdue(1000)
    transfer.stop()
    assert not transfer.overdue(10**9) and transfer.stalled_s(10**9) == 0


def test_a_head_gets_no_time_for_its_bytes() -> None:
    transfer = head_deadline(10)
    transfer.start(0)
    transfer.moved(2**30, 5)
    assert transfer.overdue(10.1)


def test_time_in_which_the_server_does_not_read_does_not_count() -> None:
    transfer = Transfer(30)
    transfer.start(0)
    transfer.wait(100)
    assert not transfer.overdue(129) and transfer.overdue(131) and transfer.stalled_s(101) == 1


def test_single_bytes_are_no_progress() -> None:
    transfer = Transfer(30)
    transfer.start(0)
    for second in range(1, 20):
        transfer.moved(100, second)
    assert transfer.stalled_s(20) == 20
    transfer.moved(2**14, 20)
    assert transfer.stalled_s(21) == 1


# ── seats ──


class Room:
    """Seats of names, and what was ended."""

    def __init__(self, size: int, spare: int) -> None:
        self.ended: list[str] = []
        self.stalled: list[str] = []
        self.seats: Seats[str] = Seats(
            size, spare, self.ended.append, lambda: self.stalled.pop() if self.stalled else None
        )

    def enter(self, *names: str) -> list[bool]:
        return [self.seats.enter(name) for name in names]

    def busy(self, *names: str) -> list[bool]:
        return [self.seats.begin(name) for name in names]


def test_the_connection_that_is_idle_longest_gives_way() -> None:
    room = Room(3, 1)
    assert room.enter("a", "b", "c") == [False] * 3
    assert room.busy("a", "b") == [True] * 2
    room.seats.rest("b")
    room.seats.rest("a")  # idle from now on: c, b, a
    assert room.enter("d", "e") == [True] * 2
    assert room.ended == ["c", "b"]
    assert room.busy("a", "d", "e") == [True] * 3


def test_busy_connections_stay_and_others_get_spare_ones() -> None:
    room = Room(2, 2)
    room.enter("a", "b")
    room.busy("a", "b")
    assert room.enter("c", "d") == [True] * 2
    assert room.busy("c", "d") == [False] * 2 and not room.ended
    room.enter("e")
    assert room.ended == ["c"]  # the oldest spare one
    room.seats.rest("a")
    assert room.busy("d") == [True] and room.ended == ["c", "a"]  # d has the place of a
    assert room.busy("e") == [False]
    room.seats.leave("b")
    assert room.busy("e") == [True]


def test_a_stalled_client_gives_way_only_if_no_connection_is_idle() -> None:
    room = Room(2, 2)
    room.enter("a", "b")
    room.busy("a")
    room.stalled = ["a"]
    room.enter("c")
    assert room.ended == ["b"]
    room.busy("c")
    room.enter("d")
    assert room.ended == ["b", "a"] and room.busy("d") == [True]


def test_a_connection_that_has_left_takes_no_place() -> None:
    room = Room(1, 1)
    for name in "abcdef":
        room.enter(name)
        assert room.busy(name) == [True]
        room.seats.leave(name)
        room.seats.leave(name)
        room.seats.rest(name)
    assert not room.ended


def test_the_limit_is_logged_at_most_every_ten_seconds() -> None:
    throttle = Throttle()
    assert [throttle.due(now) for now in (0, 1, 9, 10, 11, 25)] == [1, 0, 0, 3, 0, 2]


@pytest.mark.parametrize(
    ("limits", "wanted", "raised", "possible"),
    [
        ((1024, 4096), 1000, 1000 + 64 + 512, 1000),
        ((1024, 1024), 1000, None, 448),
        ((592, 592), 1000, None, 16),
        ((65536, 65536), 1000, None, 1000),
        ((1024, resource.RLIM_INFINITY), 100_000, 100_576, 100_000),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 100_000, None, 100_000),
    ],
)
def test_the_limit_of_open_files(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], wanted: int, raised: int | None, possible: int
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(seats.resource, "getrlimit", lambda which: limits)
    monkeypatch.setattr(seats.resource, "setrlimit", lambda which, both: calls.append(both[0]))
    assert raise_open_files(wanted, 64) == possible
    assert [call for call in calls if call != limits[0]] == ([raised] if raised else [])


def test_a_server_that_could_hardly_open_a_connection_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seats.resource, "getrlimit", lambda which: (100, 100))
    monkeypatch.setattr(seats.resource, "setrlimit", lambda which, both: None)  # not of this process
    with pytest.raises(ConfigError, match="ulimit -n 1576"):
        raise_open_files(1000, 64)


# ── the budget ──


def test_a_large_body_leaves_room_for_small_ones() -> None:
    budget = Budget(16 * MIB, 8 * MIB)
    large, other, small = budget.share(), budget.share(), budget.share()
    large.hold(8 * MIB)
    other.hold(6 * MIB)
    with pytest.raises(QueueFull) as refused:
        other.hold(1)
    assert refused.value.retry_after_s == 1
    small.hold(MIB)
    with pytest.raises(QueueFull):
        small.hold(1)  # no longer small
    large.release()
    small.hold(1)
    assert budget.used == 7 * MIB + 1


def test_the_largest_body_fits_if_it_is_alone() -> None:
    budget = Budget(8 * MIB, 8 * MIB)
    share = budget.share()
    share.hold(8 * MIB)
    with pytest.raises(InputTooLong, match="8 MiB"):
        share.hold(1)  # a retry could not succeed
    share.release()
    share.release()
    assert budget.used == 0


def test_stalled_clients_are_ended_for_a_body() -> None:
    stalled = [3 * MIB, 4 * MIB]

    def relieve() -> bool:
        if stalled:
            old.set(old.held - stalled.pop())
            return True
        return False

    budget = Budget(8 * MIB, 8 * MIB, relieve)
    old, new = budget.share(), budget.share()
    old.set(7 * MIB)
    new.hold(4 * MIB)
    assert stalled == [3 * MIB]  # no more than necessary
    new.hold(4 * MIB)
    assert not stalled and budget.used == 8 * MIB


def test_the_heap_is_trimmed_after_large_bodies() -> None:
    budget = Budget(256 * MIB, 64 * MIB)
    share, heap = budget.share(), HeapTrim(budget)
    steps = [
        (0, False),
        (100, False),
        (80, False),
        (60, True),
        (60, False),
        (40, False),
        (0, True),
        (0, False),
    ]
    for size, expected in steps:
        share.set(size * MIB)
        assert heap.is_due(100.0) == expected, size
    trim()


def test_the_heap_is_trimmed_some_time_after_small_bodies() -> None:
    budget = Budget(256 * MIB, 64 * MIB)
    heap = HeapTrim(budget)
    assert not heap.is_due(100.0) and not heap.is_pending
    for now in (101.0, 103.0):
        for _ in range(20):
            share = budget.share()
            share.hold(100_000)
            share.release()
        assert heap.is_due(now) == (now == 101.0)
    # and some time longer, because the work of a request may end after its body is released
    assert [now for now in range(104, 200) if heap.is_due(now)] == [106, 111, 116, 121]
    assert not heap.is_pending


# ── heads ──


class Parsed:
    def __init__(self, head: bytes) -> None:
        self.url, self.headers, self.upgrades = b"", [], False
        self.parser = httptools.HttpRequestParser(self)
        try:
            self.parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            self.upgrades = True

    def on_headers_complete(self) -> None:
        self.keeps_alive = self.parser.should_keep_alive()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    headers: list[tuple[bytes, bytes]]


@pytest.mark.parametrize(
    ("connection", "kept"),
    [
        (b"Upgrade", None),
        (b"upgrade, HTTP2-Settings", None),
        (b"keep-alive, Upgrade", b"keep-alive"),
        (b"close , UPGRADE,http2-settings", b"close"),
    ],
)
def test_a_head_without_its_upgrade(connection: bytes, kept: bytes | None) -> None:
    head = (
        b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nConnection: %s\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"
        b"A: \xe9 b\r\nA: c\r\nContent-Length: 0\r\n\r\n" % connection
    )
    before = Parsed(head)
    assert before.upgrades
    again = heads.without_upgrade(before.parser.get_method(), "1.1", before.url, before.headers)
    after = Parsed(again)
    assert not after.upgrades and after.url == before.url == b"/a?b=c"
    assert after.parser.get_method() == b"POST"
    expected = [(b"host", b"x"), (b"a", b"\xe9 b"), (b"a", b"c"), (b"content-length", b"0")]
    if kept:
        expected.insert(1, (b"connection", kept))
    assert after.headers == expected
    assert after.keeps_alive == (kept != b"close")


# ── paths ──


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("", "/"),
        ("//", "/"),
        ("/v1/rerank", "/v1/rerank"),
        ("//v1/rerank", "/v1/rerank"),
        ("/v1//rerank///", "/v1/rerank"),
        ("/v1/score/org/name/", "/v1/score/org/name"),
        ("///v1//admin///load/", "/v1/admin/load"),
    ],
)
def test_one_spelling_of_a_path(path: str, expected: str) -> None:
    assert clean(path) == expected


ROUTES = create_app(ServerConfig(model=()), Service).routes


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/v2/rerank", "/v2/rerank"),
        ("/v1/v1/rerank", "/v1/rerank"),
        ("/api/v1/embeddings", "/v1/embeddings"),
        ("/v1/v1/score/org/name", "/v1/score/{model}"),
        ("/openai/embeddings", "/embeddings"),
        ("/openai/models", "/models"),
        ("/encode/org/name", "/v1/encode/{model}"),
        ("/v1/reranks", "/v1/rerank"),
        ("/V1/Rerank", "/v1/rerank"),
        ("/healthy", "/health"),
        ("/nothing/like/it", None),
        ("/" + "a/" * 50_000, None),
    ],
)
def test_the_route_that_an_unknown_path_means(path: str, meant: str | None) -> None:
    assert route_meant(path, ROUTES) == meant


APP = create_app(
    ServerConfig(model=(), offline=True, api_keys=Secret(INFER_KEY), cors_origins=("https://a.example",)),
    Service,
)
HEADERS = {"authorization": f"Bearer {INFER_KEY}", "origin": "https://a.example"}
WITH_MODEL = [route.path.replace("{model:path}", "no/model") for route in ROUTES if isinstance(route, Route)]


@pytest.mark.parametrize("path", WITH_MODEL)
def test_slashes_too_many_reach_the_same_route(path: str) -> None:
    with TestClient(APP, headers=HEADERS) as client:
        for method in ("GET", "POST"):
            expected = client.request(method, path)
            for variant in (f"/{path}", f"{path}/", path.replace("/", "//"), f"///{path}///"):
                found = client.request(method, f"http://testserver{variant}")
                assert (found.status_code, found.headers.get("x-sie-error-code")) == (
                    expected.status_code,
                    expected.headers.get("x-sie-error-code"),
                ), variant


@pytest.mark.parametrize(
    "path",
    ["//v1/admin/load", "/v1//admin/load/", "/%2Fv1/admin/load", "/v1/admin%2Fload", "/v1%2F%2Fadmin/load"],
)
def test_no_spelling_of_an_admin_route_avoids_its_scope(path: str) -> None:
    with TestClient(APP, headers=HEADERS) as client:
        answer = client.post(f"http://testserver{path}", json={"model": "sie/mini-en"})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_a_model_id_may_be_sent_with_an_encoded_slash() -> None:
    with TestClient(APP, headers=HEADERS) as client:
        for path in ("/v1/models/sie%2Fmini-en", "/v1/models/sie/mini-en", "//v1/models/sie%2Fmini-en/"):
            assert client.get(f"http://testserver{path}").json()["name"] == "sie/mini-en"


def test_the_404_of_an_unknown_path_names_the_route_meant_and_is_short() -> None:
    with TestClient(APP, headers=HEADERS) as client:
        message = client.post("/v1/v2/rerank").json()["error"]["message"]
        assert message == "no route /v1/v2/rerank; did you mean /v2/rerank? See /docs"
        assert len(client.post("/" + "x" * 50_000).content) < 1000


def test_every_route_has_a_clean_path() -> None:
    paths = [route.path for route in ROUTES if isinstance(route, Route)]
    assert len(paths) > 20 and [clean(path) for path in paths] == paths


# ── the gate ──

LOCAL = {"path": "/v1/admin/load", "client": ("127.0.0.1", 1)}


PROXIED = [
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-forwarded-server",
    "x-forwarded-prefix",
    "x-real-ip",
    "x-original-host",
    "x-original-url",
    "x-original-forwarded-for",
    "cf-connecting-ip",
    "cf-ray",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-envoy-peer-metadata",
    "fastly-client-ip",
    "x-amzn-trace-id",
    "x-cloud-trace-context",
    "x-azure-clientip",
    "x-azure-ref",
    "fly-client-ip",
    "x-appengine-user-ip",
]


@pytest.mark.parametrize("name", PROXIED)
def test_a_header_of_a_proxy_shows_that_the_caller_is_not_local(name: str) -> None:
    gate = Gate(())
    gate.admit({**LOCAL, "headers": [(b"host", b"localhost"), (b"x-sie-pool", b"a"), (b"accept", b"*/*")]})
    with pytest.raises(Forbidden, match="through a proxy"):
        gate.admit({**LOCAL, "headers": [(b"host", b"localhost"), (name.encode(), b"127.0.0.1")]})


# ── the pace of refusals ──


def test_a_loop_without_a_pause_gets_its_refusals_at_the_pace_of_retry_after() -> None:
    allowance, now = Allowance(), 100.0
    pace = Pace(allowance)
    while allowance.take(now):  # other connections have used it up
        pass
    assert pace.delay_s(now, 1) == 0  # the first refusal states the time to wait
    assert pace.delay_s(now, 1) == MOST_S
    now += MOST_S
    while allowance.take(now):
        pass
    assert pace.delay_s(now, 1) == pytest.approx(MOST_S)


def test_a_client_that_waits_is_refused_at_once() -> None:
    allowance = Allowance()
    pace = Pace(allowance)
    for second in range(100, 110):
        while allowance.take(second):
            pass
        assert pace.delay_s(second, 1) == 0


def test_few_refusals_are_never_delayed() -> None:
    pace = Pace(Allowance())
    assert not any(pace.delay_s(100 + number / 100, 1) for number in range(1000))
