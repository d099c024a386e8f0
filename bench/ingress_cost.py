"""CPU time of a request in a process that only carries it: HTTP, decoding, pickling for another process, encoding.

    python -m bench.ingress_cost               # half a minute
    python -m bench.ingress_cost --record      # also renews the figures of docs/scale.md

A request has 100 documents of 600 bytes. CPU time is measured, not wall time, and the cheapest of several blocks
counts, so that other programs change the figures little. HTTP is measured with a server process: a request for a model
that does not exist is read, authenticated, decoded and then refused.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import click
from bench import machine
from bench.local_server import Server, running_server
from bench.raw_client import JSON, MSGPACK, Connection, encode, request
from bench.scale.page import MEASURED, write_page
from bench.workload import corpus_words
from rich.console import Console

from sie_server.api import codec
from sie_server.wire import ScoreEntry, ScoreRequest, ScoreResponse, Usage

OUT = Path(__file__).resolve().parent / "out"
DOCUMENTS, BYTES = 100, 600
MODEL = "sie/mini-en"
BLOCKS, SECONDS = 7, 0.2  # per measurement, and per block
console = Console(width=None if Console().is_terminal else 120)


def body() -> dict[str, object]:
    text = 2 * " ".join(corpus_words())
    items = [{"id": f"document-{i}", "text": text[i * BYTES :][:BYTES]} for i in range(DOCUMENTS)]
    return {"query": {"text": "why do massive stars explode"}, "items": items}


def answer() -> ScoreResponse:
    entries = [ScoreEntry(f"document-{i}", 1 / (3 + i), i) for i in range(DOCUMENTS)]
    return ScoreResponse(MODEL, None, entries, Usage(10_650), "probability")


def cpu_ms(call: Callable[[], object]) -> float:
    """Return the CPU milliseconds of a call in this process: the lowest mean of a block."""
    means = []
    for _ in range(BLOCKS):
        count, start = 0, time.process_time()
        while (spent := time.process_time() - start) < SECONDS:
            call()
            count += 1
        means.append(1e3 * spent / count)
    return round(min(means), 4)


def steps() -> dict[str, float]:
    """Return CPU milliseconds of the steps that do not need a connection."""
    found = {}
    for name, media in (("JSON", JSON), ("msgpack", MSGPACK)):
        raw = encode(body(), media)
        found[f"decode {name}"] = cpu_ms(lambda: codec.decode(raw, media, ScoreRequest))  # noqa: B023
        found[f"encode {name}"] = cpu_ms(lambda: codec.encode(answer_once, media))  # noqa: B023
    sent = codec.decode(encode(body(), JSON), JSON, ScoreRequest)
    for name, value in (("request", sent), ("answer", answer_once)):
        found[f"pickle {name}"] = cpu_ms(lambda: pickle.dumps(value, 5))  # noqa: B023
        pickled = pickle.dumps(value, 5)
        found[f"unpickle {name}"] = cpu_ms(lambda: pickle.loads(pickled))  # noqa: B023, S301
        if cloudpickle := _cloudpickle():
            found[f"cloudpickle {name}"] = cpu_ms(lambda: cloudpickle(value))  # noqa: B023
    return found


answer_once = answer()


def _cloudpickle() -> Callable[[object], bytes] | None:
    """Return the serialiser that Ray Serve uses by default, if it is installed."""
    try:
        import cloudpickle
    except ImportError:
        return None
    return cloudpickle.dumps  # type: ignore[no-any-return]


async def http_ms(server: Server, media: str) -> float:
    """Return the CPU milliseconds of the server for a request that it decodes and refuses."""
    connection = Connection(urlsplit(server.url).port or 80)
    sent = request("POST", "/v1/score/no/such-model", body(), media=media)
    means = []
    for _ in range(BLOCKS):
        count, start = 0, server.cpu_seconds
        while (spent := server.cpu_seconds - start) < SECONDS:
            for _ in range(10):
                assert (await connection.ask(sent)).status == 404
                count += 1
        means.append(1e3 * spent / count)
    connection.close()
    return round(min(means), 4)


def measure() -> dict[str, object]:
    start = time.perf_counter()
    with running_server(MODEL, flags=("--threads", "1", "--log-level", "error")) as server:
        ready = time.perf_counter() - start
        http = {f"HTTP and decode {name}": asyncio.run(http_ms(server, m)) for name, m in MEDIA.items()}
        memory = server.rss_mib or 0.0
    found = steps() | http
    return {
        "recorded": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine.describe(),
        "documents": DOCUMENTS,
        "bytes": {
            **{f"request {name}": len(encode(body(), media)) for name, media in MEDIA.items()},
            **{f"answer {name}": len(codec.encode(answer_once, media)) for name, media in MEDIA.items()},
            "pickled request": len(pickle.dumps(codec.decode(encode(body(), JSON), JSON, ScoreRequest), 5)),
            "pickled answer": len(pickle.dumps(answer_once, 5)),
        },
        "cpu_ms": found,
        "ready_s": round(ready, 1),
        "resident_mib": round(memory),
    }


MEDIA = {"JSON": JSON, "msgpack": MSGPACK}


@click.command()
@click.option("--record", is_flag=True, help="Renew the figures of docs/scale.md.")
def main(record: bool) -> None:
    """Measure the CPU time of a request outside the model."""
    found = measure()
    report = json.dumps(found, indent=2) + "\n"
    console.print(report, highlight=False)
    OUT.mkdir(parents=True, exist_ok=True)
    for file in (OUT / "ingress_cost.json", *((MEASURED,) if record else ())):
        file.write_text(report, encoding="utf-8")
    if record:
        write_page()


if __name__ == "__main__":
    main()
