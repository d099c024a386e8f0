"""A server for the three frameworks, and a port that only records the requests it gets."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sie_sdk import SIEClient
from support.checkpoints import cross_encoders, decoders, encoders
from support.servers import processes
from support.servers.processes import Server

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when haystack is imported
os.environ["LANGSMITH_TRACING"] = "false"

PROMPTS = {"prompts": {"query": "stars: ", "document": "rain: "}}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve sie/mini-en, a cross-encoder, a reranker with instructions and an encoder with prompts."""
    root: Path = tmp_path_factory.mktemp("models")
    cross_encoders.make_cross_encoder(root / "toy/bert", "bert")
    decoders.make_decoder(root / "toy/instructed", "qwen3")
    (root / "toy/instructed/sie_reranker.yaml").write_text("template: qwen3-reranker")
    encoders.make_encoder(root / "toy/encoder", prompts=PROMPTS)
    # no document cache, so that equal requests are computed in the same way
    args = ["--models-dir", str(root), "--dtype", "float32", "--document-cache-mb", "0"]
    with processes.running(tmp_path_factory.mktemp("server"), *args) as it:
        yield it


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[SIEClient]:
    with SIEClient(server.base_url) as it:
        yield it


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIE_BASE_URL", "SIE_API_KEY", "SIE_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def doorman() -> Iterator[tuple[str, list[str | None]]]:
    """Answer 401 to every request; yield the address and the Authorization headers received."""
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.headers.get("authorization"))
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(401)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    port = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=port.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{port.server_address[1]}", seen
    port.shutdown()
    port.server_close()
