"""A device thread that fails: waiting requests get an error, and the server process ends with a message."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from sie_server.engine.job import build_job
from sie_server.errors import QueueFull, SIEError
from sie_server.models.batch import Tokens
from sie_server.serving.metrics import Metrics, RequestTiming
from sie_server.serving.worker import DeviceWorker
from support.servers import processes
from support.waiting import until

PROGRAM = """
import sys
import time
from sie_server import cli
from sie_server.serving import worker

class Panic(BaseException):
    pass

def fail(engine, works):
    raise Panic("native code")

worker.run_isolated = fail
if sys.argv[2] == "loading":
    from sie_server.serving.loading import loader
    fetch = loader.fetch
    loader.fetch = lambda source, **how: time.sleep(600) if source.startswith("org/") else fetch(source, **how)
sys.argv = ["sie-server", "serve", "--port", sys.argv[1], "--batch-tokens", "2048"]
cli.main()
"""


class Panic(BaseException):
    """Like the panic of a native library, this is not an `Exception`."""


class PanickingEngine:
    batch_tokens, tokens_per_second = 100, 1000.0

    def run(self, works: list[Any]) -> list[Any]:
        raise Panic


async def test_every_waiting_request_fails_and_later_ones_are_refused() -> None:
    deaths: list[SIEError] = []
    worker = DeviceWorker(1000, 1, Metrics(), deaths.append)
    jobs = [build_job(("score",), [Tokens(np.zeros(60, np.int32), 60)], [False]) for _ in range(3)]
    runs = (worker.run(PanickingEngine(), job, RequestTiming()) for job in jobs)  # type: ignore[arg-type]
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


@pytest.mark.parametrize("loads", ["idle", "loading"])
def test_the_process_ends_with_a_message_and_a_non_zero_status(tmp_path: Path, loads: str) -> None:
    port = processes.free_port()
    server = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(port), loads],
        env=processes.environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url)
        if loads == "loading":  # a download that never ends must not keep the process alive
            admin = httpx.Client(timeout=httpx.Timeout(60, read=0.5))
            with pytest.raises(httpx.ReadTimeout):
                admin.post(f"{url}/v1/admin/load", json={"model": "org/slow", "source": "org/slow"})
        body = {"query": {"text": "a"}, "items": [{"text": "b"}]}
        answer = httpx.post(f"{url}/v1/score/sie/mini-en", json=body, timeout=30)
        assert answer.status_code == 503 and answer.json()["code"] == "QUEUE_FULL"
        _, log = server.communicate(timeout=30)
        assert server.returncode == 1, log
        assert "the device thread has failed (Panic)" in log.strip().splitlines()[-1]
    finally:
        server.kill()
        server.wait()


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
