"""A device thread that fails: waiting requests get an error, and the server process ends with a message."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from sie_server.engine.job import build_job
from sie_server.errors import QueueFull, SIEError
from sie_server.models.batch import Tokens
from sie_server.serving.device.worker import DeviceWorker
from sie_server.serving.metrics import Metrics, RequestTiming
from support.servers import processes
from support.waiting import eventually, until

JSON = "application/json"
POISON = {"query": {"text": "a"}, "items": [{"text": "poison"}]}

PROGRAM = """
import sys
import time
from sie_server import cli
from sie_server.engine.engine import Engine
from sie_server.serving.device import worker
from sie_server.serving.loading import loader

class Panic(BaseException):
    pass

PORT, FAULT = sys.argv[1:3]
run, fetch, passes = Engine.run, loader.fetch, []

def odd(engine, works):
    text = engine.decode(works[-1].tokens.ids.tolist())
    if "poison" not in text and not (FAULT == "broken" and len(passes) in range(3, 8)):
        return run(engine, works)
    passes.append(text)
    if FAULT in ("dead", "loading"):
        raise Panic("native code")
    if FAULT == "stuck":
        time.sleep(600)
    raise ValueError("the device does not answer")

Engine.run = odd
loader.fetch = lambda source, **how: time.sleep(600) if source.startswith("org/") else fetch(source, **how)
sys.argv = ["sie-server", "serve", "--port", PORT, "--batch-tokens", "2048", *sys.argv[3:]]
cli.main()
"""


class Panic(BaseException):
    """Like the panic of a native library, this is not an `Exception`."""


class PanickingEngine:
    batch_tokens, tokens_per_second, overlap = 100, 1000.0, 0

    def run(self, works: list[Any]) -> list[Any]:
        raise Panic


async def test_every_waiting_request_fails_and_later_ones_are_refused() -> None:
    deaths: list[SIEError] = []
    worker = DeviceWorker(1000, 1, Metrics(), deaths.append)
    jobs = [build_job(("score",), [Tokens(np.zeros(60, np.int32), 60)], [False]) for _ in range(3)]
    runs = (worker.run(PanickingEngine(), [job], RequestTiming()) for job in jobs)  # type: ignore[arg-type]
    async with asyncio.timeout(10):
        failures = await asyncio.gather(*runs, return_exceptions=True)
        assert all(isinstance(failure, QueueFull) and "Panic" in failure.message for failure in failures)
        with pytest.raises(QueueFull):
            await worker.call(lambda: None)
        await until(lambda: deaths)
        assert [type(death) for death in deaths] == [QueueFull]
    await asyncio.to_thread(worker.close)


async def test_a_call_that_panics_fails_too() -> None:
    def panic() -> None:
        raise Panic

    worker = DeviceWorker(1000, 1, Metrics())
    async with asyncio.timeout(10):
        with pytest.raises(QueueFull):
            await worker.call(panic)
    await asyncio.to_thread(worker.close)


@contextlib.contextmanager
def odd_server(folder: Path, fault: str, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Yield a server whose forward passes fail for texts with the word poison, and its URL."""
    port = processes.free_port()
    server = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(port), fault, *flags],
        env=processes.environment(folder),
        stderr=subprocess.PIPE,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(url)
        yield server, url
    finally:
        server.kill()
        server.communicate()


def score(url: str, text: str) -> httpx.Response:
    body = {"query": {"text": "a"}, "items": [{"text": text}]}
    return httpx.post(f"{url}/v1/score/sie/mini-en", json=body, headers={"accept": JSON}, timeout=30)


def status_of(url: str, route: str) -> int | None:
    """Return the status of a health route; None if the server does not answer."""
    try:
        return httpx.get(url + route, timeout=5).status_code
    except httpx.TransportError:
        return None


@pytest.mark.parametrize("fault", ["dead", "loading"])
def test_the_process_ends_with_a_message_and_a_non_zero_status(tmp_path: Path, fault: str) -> None:
    with odd_server(tmp_path, fault) as (server, url):
        if fault == "loading":  # a download that never ends must not keep the process alive
            admin = httpx.Client(timeout=httpx.Timeout(60, read=0.5))
            with pytest.raises(httpx.ReadTimeout):
                admin.post(f"{url}/v1/admin/load", json={"model": "org/slow", "source": "org/slow"})
        answer = score(url, "poison")
        assert answer.status_code == 503 and answer.json()["code"] == "QUEUE_FULL"
        assert status_of(url, "/livez") == 503
        _, log = server.communicate(timeout=30)
        assert server.returncode == 1, log
        assert "the device thread has failed (Panic)" in log.strip().splitlines()[-1]


def test_a_stuck_thread_fails_livez_and_ends_the_process(tmp_path: Path) -> None:
    with odd_server(tmp_path, "stuck", "--device-stall-s", "1") as (server, url):
        assert score(url, "rain").status_code == 200
        answer = score(url, "poison")
        assert answer.status_code == 503 and "device_stall_s" in answer.json()["detail"]["message"]
        assert status_of(url, "/livez") == 503 and status_of(url, "/readyz") == 503
        _, log = server.communicate(timeout=30)
        assert server.returncode == 1, log
        assert "the device thread is stuck" in log.strip().splitlines()[-1]


def test_a_stuck_thread_does_not_delay_the_shutdown(tmp_path: Path) -> None:
    with odd_server(tmp_path, "stuck", "--drain-s", "1") as (server, url):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/score/sie/mini-en", json=POISON, timeout=httpx.Timeout(30, read=0.5))
        server.terminate()
        began = time.monotonic()
        server.communicate(timeout=30)
        assert time.monotonic() - began < 10  # without a limit it would take 600 s


def test_a_device_that_fails_repeatedly_is_not_ready_until_it_works(tmp_path: Path) -> None:
    with odd_server(tmp_path, "broken") as (_, url):
        for _ in range(3):
            assert score(url, "poison").json()["code"] == "INFERENCE_ERROR"
        assert status_of(url, "/readyz") == 503 and status_of(url, "/livez") == 200
        # the server tests itself with texts of its own, five times in vain
        assert eventually(lambda: status_of(url, "/readyz") == 200)
        assert score(url, "rain").status_code == 200


def test_texts_that_fail_do_not_take_the_server_out_of_service(tmp_path: Path) -> None:
    with odd_server(tmp_path, "texts") as (_, url):
        for _ in range(7):
            assert score(url, "poison").json()["code"] == "INFERENCE_ERROR"
        assert eventually(lambda: status_of(url, "/readyz") == 200)
        assert score(url, "rain").status_code == 200


def _wait_until_ready(url: str) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the server is not ready after 60 s")
