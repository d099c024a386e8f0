"""One client in several processes, threads and event loops: every call gets its own answer, or an error that helps."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx
import msgpack
import pytest

from sie_sdk import Item, SIEAsyncClient, SIEClient, SIEError, network
from sie_sdk.codec import encode_body
from sie_sdk.network import until as until_moment
from support.waiting import until

Start = Callable[..., Any]


def echo(handler: BaseHTTPRequestHandler, number: int) -> None:
    """Answer with the query's number as the score, and the request's id."""
    body = msgpack.unpackb(handler.sie_body)  # type: ignore[attr-defined]
    entries = [{"item_id": "item-0", "score": float(body["query"]["text"]), "rank": 0}]
    answer = encode_body({"model": "m", "query_id": None, "scores": entries})
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(answer)))
    handler.send_header("X-SIE-Request-ID", handler.headers["x-sie-request-id"])
    handler.end_headers()
    handler.wfile.write(answer)


def ask(client: SIEClient, number: int) -> bool:
    result = client.score("m", Item(text=str(number)), [Item(text="a")])
    return result["scores"][0]["score"] == number


async def aask(client: SIEAsyncClient, number: int) -> bool:
    result = await client.score("m", Item(text=str(number)), [Item(text="a")])
    return result["scores"][0]["score"] == number


def children(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run `work(k)` in forked processes at once, and return the results or errors as JSON values."""
    pipes = []
    for k in range(1, count + 1):
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            try:
                result: Any = work(k)
            except BaseException as error:
                result = f"{type(error).__name__}: {error}"
            os.write(write, json.dumps(result).encode())
            os._exit(0)
        os.close(write)
        pipes.append((child, read))
    results = []
    for child, read in pipes:
        with os.fdopen(read, "rb") as file:
            results.append(json.loads(file.read()))
        os.waitpid(child, 0)
    return results


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_forked_processes_get_their_own_answers(loopback: Start) -> None:
    server = loopback(echo)
    with SIEClient(server.url) as client:
        assert ask(client, 7)  # opens the connection that is kept
        right = children(3, lambda k: sum(ask(client, 1000 * k + call) for call in range(40)))
        assert right == [40, 40, 40]
        assert ask(client, 8)
        assert children(1, lambda k: children(1, lambda j: ask(client, 9))) == [[True]]  # a child of a child


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_fork_while_threads_use_the_client(loopback: Start) -> None:
    server = loopback(echo)
    with SIEClient(server.url) as client, ThreadPoolExecutor(4) as pool:
        running = [pool.submit(lambda: [ask(client, call) for call in range(60)]) for _ in range(4)]
        right = children(3, lambda k: sum(ask(client, 1000 * k + call) for call in range(20)))
        assert right == [20, 20, 20]
        assert all(all(one.result()) for one in running)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_an_async_client_after_a_fork(loopback: Start) -> None:
    server = loopback(echo)
    client = SIEAsyncClient(server.url)
    assert asyncio.run(aask(client, 1))
    assert children(2, lambda k: asyncio.run(aask(client, k))) == [True, True]
    assert asyncio.run(aask(client, 2))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_transport_is_not_shared_with_a_child() -> None:
    client = SIEClient(transport=httpx.HTTPTransport())
    (message,) = children(1, lambda k: ask(client, 1))
    assert message == (
        "SIEError: the client has a transport of another process; create a client in this process"
    )


def test_a_spawned_process_gets_a_client_with_the_same_settings(loopback: Start) -> None:
    server = loopback(echo)
    client = SIEClient(server.url, api_key="k", timeout=3.0)
    assert ask(client, 1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(ask, (client, 5))
    again = pickle.loads(pickle.dumps(SIEAsyncClient(server.url, deadline=9)))  # noqa: S301  our own
    assert isinstance(again, SIEAsyncClient) and again._settings.deadline == 9
    with pytest.raises(SIEError, match="create one in each process"):
        pickle.dumps(SIEClient(transport=httpx.HTTPTransport()))


def test_event_loops_one_after_another_and_at_once(loopback: Start) -> None:
    server = loopback(echo)
    client = SIEAsyncClient(server.url)

    async def some(first: int) -> list[bool]:
        return list(await asyncio.gather(*(aask(client, first + call) for call in range(10))))

    for first in range(0, 50, 10):
        assert all(asyncio.run(some(first)))
    assert len(client._connections._by_loop) == 1  # those of closed loops are gone
    with ThreadPoolExecutor(4) as pool:
        assert all(all(right) for right in pool.map(lambda k: asyncio.run(some(100 * k)), range(1, 9)))


def test_threads_share_a_client(loopback: Start) -> None:
    server = loopback(echo)
    with SIEClient(server.url) as client, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda number: ask(client, number), range(200)))


def test_a_client_that_nobody_holds_finishes_its_call(loopback: Start) -> None:
    begun = threading.Event()

    def slow(handler: BaseHTTPRequestHandler, number: int) -> None:
        begun.set()
        collected.wait(10)
        echo(handler, number)

    collected = threading.Event()
    server = loopback(slow)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(lambda: ask(SIEClient(server.url), 3))
        assert begun.wait(10)
        gc.collect()
        collected.set()
        assert call.result()
    assert asyncio.run(aask(SIEAsyncClient(server.url), 4))


def test_closing_ends_calls_with_an_error_that_says_so(loopback: Start) -> None:
    begun = threading.Event()
    server = loopback(lambda handler, number: (begun.set(), server.leave.wait(10)))
    client = SIEClient(server.url, timeout=60)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(ask, client, 1)
        assert begun.wait(10)
        client.close()
        with pytest.raises(SIEError, match="the client is closed; create a new one"):
            ask(client, 2)
        with pytest.raises(SIEError, match="closed during the call"):
            call.result(20)


@pytest.mark.parametrize("connecting", [True, False])
async def test_closing_ends_calls_of_the_async_client(loopback: Start, connecting: bool) -> None:
    """Also one that is connecting: it would go on in a connection that the closed client does not know."""
    server = loopback(lambda handler, number: server.leave.wait(10))
    client = SIEAsyncClient(server.url, timeout=60)
    call = asyncio.create_task(aask(client, 1))
    await until(lambda: client._connections._running if connecting else server.seen)
    await client.close()
    async with asyncio.timeout(5):
        with pytest.raises(SIEError, match="closed during the call"):
            await call


@pytest.mark.parametrize("interrupt", ["destructor", "signal"])
def test_a_call_inside_a_call_of_the_same_thread(loopback: Start, interrupt: str) -> None:
    """A destructor runs at any allocation, and a signal handler at any time: also while locks are held."""
    server = loopback(echo)
    right: list[bool] = []
    with SIEClient(server.url) as client:

        def inner(*_: Any) -> None:
            right.append(ask(client, 5))

        class Cycle:
            def __init__(self) -> None:
                self.itself = self

            __del__ = inner

        thresholds = gc.get_threshold()
        previous = signal.signal(signal.SIGALRM, inner)
        try:
            if interrupt == "destructor":
                gc.set_threshold(60, 2, 2)
            for number in range(12):
                if interrupt == "destructor":
                    Cycle()
                else:
                    signal.setitimer(signal.ITIMER_REAL, 0.0005)
                assert ask(client, number)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
            gc.set_threshold(*thresholds)
        gc.collect()
    assert right and all(right)


def test_a_call_keeps_its_deadline_after_a_call_inside_it() -> None:
    with until_moment(time.monotonic() - 1):
        with until_moment(math.inf):
            assert network._left(None, TimeoutError) is None
        with pytest.raises(TimeoutError):
            network._left(None, TimeoutError)
    assert not network.is_inside_call()


def test_a_destructor_at_the_end_of_the_interpreter_gets_an_error_that_says_so() -> None:
    program = """if True:
        from sie_sdk import Item, SIEClient, SIEError
        class Holder:
            client = SIEClient("http://127.0.0.1:1")
            def __del__(self, Item=Item, SIEError=SIEError):
                try:
                    self.client.score("m", Item(text="a"), [Item(text="b")])
                except SIEError as error:
                    print(error)
        holder = Holder()
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "the interpreter is shutting down" in done.stdout, done.stderr


def test_a_loop_of_another_library_is_named() -> None:
    call = aask(SIEAsyncClient("http://127.0.0.1:1"), 1)
    with pytest.raises(SIEError, match="a task in an event loop of asyncio"):
        call.send(None)  # as a loop that is not asyncio's runs a coroutine


async def test_a_coroutine_outside_a_task_is_named() -> None:
    """As trio's guest mode inside asyncio runs it."""
    call, done = aask(SIEAsyncClient("http://127.0.0.1:1"), 1), asyncio.get_running_loop().create_future()

    def run() -> None:
        try:
            call.send(None)
        except SIEError as error:
            done.set_result(str(error))

    asyncio.get_running_loop().call_soon(run)
    assert "needs a task in an event loop of asyncio" in await asyncio.wait_for(done, 5)
