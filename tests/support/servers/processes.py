"""Real `sie-server` processes on the loopback interface, their checkpoints, and requests to them.

This module does not use the server's code: it starts the command as a user does and observes port, log and exit status.
By default no process can reach a model hub.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgpack
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from support.checkpoints import cross_encoders
from support.checkpoints.cache import cached
from support.conformance.switch import clustered
from support.device import DEVICE
from support.servers.forking import Forked, started

JSON, MSGPACK = "application/json", "application/msgpack"
START_S = 120.0  # generous: the machine may be shared
PLAIN = False  # servers under test speak plain HTTP, and httpx takes 20 ms of CPU to read the certificates
NOBODY = "http://127.0.0.1:9"  # the discard port, on which no server listens


@dataclass
class Server:
    """One running process."""

    process: subprocess.Popen[bytes] | Forked
    port: int
    log_path: Path
    admin_key: str = ""  # sent to admin routes, if this machine alone does not make a caller an admin

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_headers(self) -> dict[str, str]:
        """The headers of a caller that may see and do everything."""
        return {"authorization": f"Bearer {self.admin_key}"} if self.admin_key else {}

    def _admin(self, path: str) -> dict[str, str]:
        return self.admin_headers if path.startswith("/v1/admin/") else {}

    @property
    def admin_env(self) -> dict[str, str]:
        """The settings of a command that calls admin routes."""
        return {"SIE_ADMIN_KEY": self.admin_key} if self.admin_key else {}

    @property
    def log(self) -> str:
        """Return the complete log so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def post(
        self,
        path: str,
        body: Any,
        *,
        content_type: str | None = JSON,
        accept: str | None = JSON,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        """POST `body`: bytes unchanged, anything else encoded according to `content_type`."""
        sent = {"content-type": content_type, "accept": accept, **(headers or {})}
        sent = {**self._admin(path), **sent}
        if not isinstance(body, bytes):
            body = msgpack.packb(body) if content_type == MSGPACK else json.dumps(body).encode()
        with httpx.Client(timeout=120, verify=PLAIN) as client:
            request = client.build_request("POST", self.base_url + path, content=body)
            request.headers.pop("accept")  # httpx would add its own
            for name, value in sent.items():
                if value is not None:
                    request.headers[name] = value
            return client.send(request)

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        sent = {**self._admin(path), **(headers or {})}
        return httpx.get(self.base_url + path, headers=sent, timeout=60, verify=PLAIN)

    def score(self, model: str, query: str, texts: list[str], **body: Any) -> dict[str, Any]:
        """Return the answer to a plain JSON request, which must be a 200."""
        sent = {"query": {"text": query}, "items": [{"text": text} for text in texts], **body}
        answer = self.post(f"/v1/score/{model}", sent)
        assert answer.status_code == 200, answer.text
        answered: dict[str, Any] = answer.json()
        return answered

    def scores(self, model: str, query: str, texts: list[str], **options: Any) -> list[float]:
        """Return scores in the order of `texts`."""
        entries = self.score(model, query, texts, options=options)["scores"]
        by_id = {entry["item_id"]: entry["score"] for entry in entries}
        return [by_id[f"item-{i}"] for i in range(len(texts))]

    def metric(self, name: str, **labels: str) -> float:
        """Return a sample of /metrics, or 0 if it does not exist yet; of a cluster, the sum over its replicas."""
        found = 0.0
        for line in self.get("/metrics").text.splitlines():
            match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            of = dict(re.findall(r'(\w+)="([^"]*)"', match[1] or "")) if match else {}
            if match and (of == labels or {k: v for k, v in of.items() if k != "replica"} == labels):
                found += float(match[2])
        return found

    def raw(self) -> socket.socket:
        """Return a bare connection, for bytes that no HTTP client would send."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def signal_and_wait(self, number: int = signal.SIGTERM, within: float = 60) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(within)


def running(
    folder: Path, *args: str, env: dict[str, str] | None = None
) -> contextlib.AbstractContextManager[Server]:
    """Start `sie-server serve` as `single` does; with SIE_TEST_CLUSTER=1 a cluster takes its place."""
    if clustered():
        from support.conformance import cluster  # it uses this module

        return cluster.running(folder, *args, env=env)
    return single(folder, *args, env=env)


@contextlib.contextmanager
def single(folder: Path, *args: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    """Start `sie-server serve` with `args` and yield it once ready; at the end it must stop on SIGTERM with status 0.

    A test may stop the process itself and look at the status.
    """
    port = free_port()
    log_path = folder / f"server-{port}.log"
    command = ["serve", "--port", str(port), *args]
    process = started(command, environment(folder, env), Path(os.devnull), log_path, log_path, env)
    server = Server(process, port, log_path)
    try:
        _wait_until_ready(server)
        yield server
        if process.poll() is None:
            status = server.signal_and_wait()
            assert status == 0, f"exit status {status} after SIGTERM\n{server.log[-3000:]}"
        assert "Traceback" not in server.log, server.log[-5000:]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(30)


def environment(folder: Path, more: dict[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without its SIE_ settings, with an unreachable hub and settings for tests.

    The batch size is fixed, because measuring it takes 1.5 s per loaded model.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SIE_", "HF_", "TRANSFORMERS_"))}
    return {
        **kept,
        "SIE_DEVICE": DEVICE,
        "SIE_THREADS": "1",
        "SIE_BATCH_TOKENS": "2048",
        "HF_ENDPOINT": NOBODY,
        "HF_HOME": str(folder / "hub"),
        **(more or {}),
    }


def _wait_until_ready(server: Server) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if server.process.poll() is not None:
            raise AssertionError(f"the server ended with {server.process.returncode}\n{server.log[-3000:]}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{server.base_url}/readyz", timeout=10, verify=PLAIN).status_code == 200:
                return
        time.sleep(0.03)
    raise AssertionError(f"not ready after {START_S} s\n{server.log[-3000:]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def command_line(
    folder: Path, *args: str, env: dict[str, str] | None = None, stdin: str = "", within: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run `sie-server` with `args` until it ends."""
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name, stream) for stream in ("stdin", "stdout", "stderr")]
        files[0].write_text(stdin, encoding="utf-8")
        process = started(args, environment(folder, env), *files, env)
        try:
            status = process.wait(within)
        finally:
            process.kill()
        shown = [path.read_text(encoding="utf-8") for path in files[1:]]
    return subprocess.CompletedProcess(process.args, status, *shown)


# ── checkpoints ──


@cached
def make_encoder(directory: Path, *, pooling: str = "mean") -> Path:
    """Write a random BertModel in the sentence-transformers layout, which returns dense vectors and cannot score."""
    cross_encoders.make_cross_encoder(directory, "bert", seed=3)  # for its tokenizer
    vocabulary = json.loads((directory / "config.json").read_text())["vocab_size"]
    (directory / "model.safetensors").unlink()
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=128,
    )
    transformers.BertModel(config, add_pooling_layer=False).eval().save_pretrained(directory)
    kind = "sentence_transformers.models"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{kind}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kind}.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{kind}.Normalize"},
    ]
    write_json(directory / "modules.json", modules)
    (directory / "1_Pooling").mkdir()
    write_json(
        directory / "1_Pooling" / "config.json",
        {"word_embedding_dimension": 48, f"pooling_mode_{pooling}_tokens": True},
    )
    return directory


def poison(directory: Path, source: Path) -> Path:
    """Copy `source`, and set its first attention weight to NaN."""
    shutil.copytree(source, directory)
    edit_weights(directory, lambda w: w[next(n for n in w if n.endswith("query.weight"))].fill_(float("nan")))
    return directory


def poison_words(directory: Path, source: Path, spared: list[str]) -> Path:
    """Copy `source`, and set the embeddings of all tokens to NaN except those of the `spared` texts."""
    shutil.copytree(source, directory)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    # token 0 pads batches
    kept = sorted({0, *(token for text in spared for token in tokenizer.encode(text).ids)})

    def edit(weights: dict[str, torch.Tensor]) -> None:
        table = weights[next(name for name in weights if name.endswith("word_embeddings.weight"))]
        rows = table[kept].clone()
        table.fill_(float("nan"))
        table[kept] = rows

    edit_weights(directory, edit)
    return directory


def edit_weights(directory: Path, edit: Any) -> None:
    """Load the tensors of a checkpoint, let `edit` change the dict, and write them back."""
    path = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path, {"format": "pt"})


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    write_json(path, {key: value for key, value in content.items() if value is not None})


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
