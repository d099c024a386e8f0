"""Memory that is missing anywhere between the first byte and the answer is 503 RESOURCE_EXHAUSTED, and passes."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvicorn
from starlette.testclient import TestClient

from sie_server import room
from sie_server.api import codec, reading
from sie_server.api.app import create_app
from sie_server.api.edge.connections import edge, protocol
from sie_server.api.server import http_settings
from sie_server.config import ServerConfig
from sie_server.engine.text import slices
from sie_server.models.layers import onednn
from sie_server.room import Threads
from sie_server.serving.loading.lanes import Lane
from sie_server.serving.service import Service
from support.servers.inprocess import asking

MODEL = "sie/mini-en"
BODY: dict[str, Any] = {"query": {"text": "rain"}, "items": [{"text": "rain falls"}, {"text": "stars"}]}
SMALL: dict[str, Any] = {
    **BODY,
    "items": BODY["items"] * 5,
}  # not tiny: the event loop tokenises those itself
LARGE = {"query": {"text": "rain"}, "items": [{"text": "rain falls " * 120_000}]}  # decoded on a thread
EMBEDDED = Path(room.__file__).parent / "embedded/mini-en"


def no_memory(*_: Any, **__: Any) -> Any:
    raise MemoryError


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with asking({MODEL: EMBEDDED}) as asked:
        assert asked.post(f"/v1/score/{MODEL}", json=BODY).status_code == 200
        yield asked


def has_no_thread(monkeypatch: pytest.MonkeyPatch, client: TestClient, pool: str) -> None:
    """Give the app a pool without threads, and no memory for the first one."""
    threads = client.app.state.threads  # type: ignore[attr-defined]
    service = client.app.state.service  # type: ignore[attr-defined]
    owner, name = (threads, pool) if hasattr(threads, pool) else (service._tokenizers, pool)
    monkeypatch.setattr(owner, name, Threads(1, thread_name_prefix="sie-test"))
    monkeypatch.setattr(room, "room_for_threads", lambda count: False)


@pytest.mark.parametrize(
    ("asked", "lose"),
    [
        (BODY, lambda patch, client: patch.setattr(codec, "decode", no_memory)),
        (LARGE, lambda patch, client: patch.setattr(codec, "decode", no_memory)),
        (LARGE, lambda patch, client: has_no_thread(patch, client, "decoding")),
        (SMALL, lambda patch, client: has_no_thread(patch, client, "_small")),
        (LARGE, lambda patch, client: has_no_thread(patch, client, "_large")),
        (BODY, lambda patch, client: patch.setattr(slices, "check_room", no_memory)),
        (BODY, lambda patch, client: patch.setattr("sie_server.models.layers.linear.check_room", no_memory)),
        (BODY, lambda patch, client: patch.setattr(codec, "encode", no_memory)),
        (LARGE, lambda patch, client: patch.setattr(reading, "memory_of", no_memory)),
    ],
    ids=[
        "decode",
        "decode large",
        "decode thread",
        "small",
        "large",
        "tokenizer",
        "product",
        "encode",
        "count",
    ],
)
def test_the_request_fails_with_503_and_the_next_one_succeeds(
    client: TestClient,
    monkeypatch: pytest.MonkeyPatch,
    asked: Any,
    lose: Callable[[pytest.MonkeyPatch, TestClient], None],
) -> None:
    with monkeypatch.context() as patch:
        lose(patch, client)
        answer = client.post(f"/v1/score/{MODEL}", json=asked)
        assert (answer.status_code, answer.json()["code"]) == (503, "RESOURCE_EXHAUSTED")
        assert int(answer.headers["retry-after"]) > 0
    assert client.post(f"/v1/score/{MODEL}", json=asked).status_code == 200


# ── below the application ──


@contextmanager
def connected(config: ServerConfig) -> Iterator[Callable[[bytes], bytes]]:
    """Serve without models on a port; yield a function that sends bytes and returns the answer."""
    settings = http_settings(config, create_app(config, Service))
    server = uvicorn.Server(uvicorn.Config(log_level="critical", **settings))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()

        def send(data: bytes) -> bytes:
            with socket.create_connection(listener.getsockname(), timeout=20) as connection:
                connection.sendall(data)
                parts = iter(lambda: connection.recv(65536), b"")
                return b"".join(parts)

        try:
            yield send
        finally:
            server.should_exit = True
            thread.join()


def code_of(answer: bytes) -> tuple[bytes, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"x-sie-server-version" in head.lower()  # without it, clients take a 5xx for a proxy's
    return head.split(b"\r\n")[0], json.loads(body)["code"]


def test_below_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    get = b"GET /v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    post = b"POST /v1/rerank HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
    exhausted = (b"HTTP/1.1 503 Service Unavailable", "RESOURCE_EXHAUSTED")
    with connected(ServerConfig()) as send:
        assert send(get).startswith(b"HTTP/1.1 200")
        with monkeypatch.context() as patch:  # in a callback of the parser
            patch.setattr(protocol.HttpToolsProtocol, "on_header", no_memory)
            assert code_of(send(get)) == exhausted
        with monkeypatch.context() as patch:  # while bytes are cut into slices
            patch.setattr(protocol.EdgeProtocol, "_feed", no_memory)
            assert code_of(send(get)) == exhausted
        with monkeypatch.context() as patch:  # in the route, and again in the error's answer
            patch.setattr(msgspec.json, "encode", no_memory)
            assert code_of(send(post)) == exhausted
        assert send(get).startswith(b"HTTP/1.1 200")


async def test_a_sweep_that_fails_is_not_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge.HeapTrim, "is_due", no_memory)
    swept = edge.Edge(ServerConfig(), lambda error: None)
    with pytest.raises(MemoryError):
        swept._sweep(asyncio.get_running_loop())
    assert swept._timer is not None and not swept._timer.cancelled()
    swept._timer.cancel()


# ── threads ──


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """`lost(True)`: no thread can be started from now on."""
    start, state = threading.Thread.start, [False]

    def started(thread: threading.Thread) -> None:
        if state[0]:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", started)
    yield lambda value: state.__setitem__(0, value)
    state[0] = False


async def test_a_lane_works_again_after_a_thread_that_could_not_be_started(
    lost: Callable[[bool], None],
) -> None:
    lane = Lane("sie-test", 1)
    lost(True)
    for _ in range(2):
        with pytest.raises(MemoryError):
            async with asyncio.timeout(5):
                await lane.run(lambda: 1)
    lost(False)
    async with asyncio.timeout(5):
        assert [await lane.run(lambda: 2), await lane.run(lambda: 3)] == [2, 3]
    lane.close()


def test_a_pool_goes_on_with_the_threads_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    with Threads(4, thread_name_prefix="sie-test") as pool:
        with monkeypatch.context() as patch:
            patch.setattr(room, "room_for_threads", lambda count: False)
            with pytest.raises(MemoryError):
                pool.submit(lambda: 1)
            assert pool._work_queue.empty()  # nothing is left that would run later
        leave = threading.Event()
        first = pool.submit(leave.wait, 10)
        with monkeypatch.context() as patch:
            patch.setattr(room, "room_for_threads", lambda count: False)
            later = [pool.submit(lambda n=n: n) for n in range(3)]  # type: ignore[misc]
            assert len(pool._threads) == 1
        leave.set()
        assert first.result(5) and [one.result(5) for one in later] == [0, 1, 2]


# ── native libraries, which would end the process ──

PROGRAM = """
import resource, sys
from pathlib import Path
import torch
from sie_server.engine.text.reading import TextReader
from sie_server.models.layers.linear import Linear
from tokenizers import Tokenizer

torch.set_num_threads(1)
reader = TextReader(Tokenizer.from_file(sys.argv[1]))
layer = Linear(torch.randn(1536, 384).bfloat16(), None)
texts = {"one": ["\u96e8" * 60_000], "many": ["rain falls over stars "] * 900}
steps = [lambda text=text: reader.read(text, 60_000) for text in texts.values()]
steps += [lambda rows=rows: layer(torch.ones(rows, 384).bfloat16()) for rows in (13, 1000, 30_000)]
for step in steps[:3]:
    step()
pages = int(Path("/proc/self/statm").read_text().split()[0])
kept = []
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (4 << 20), -1))
try:
    while True:
        kept.append(bytearray(1 << 16))
except MemoryError:
    pass
outcomes = []
for step in steps:
    try:
        step()
        outcomes.append("done")
    except (MemoryError, RuntimeError) as error:
        outcomes.append(type(error).__name__)
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
kept.clear()
print(*outcomes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_native_libraries_without_memory_do_not_end_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(EMBEDDED / "tokenizer.json")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "MemoryError" in done.stdout.split()[:2]
    assert not onednn.usable() or "MemoryError" in done.stdout.split()[2:]
