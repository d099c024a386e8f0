"""A server from command line to exit status: settings and models that it refuses, shutdown, and other commands."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file

from sie_sdk import Item, SIEClient
from sie_server import __version__
from support.checkpoints.cross_encoders import make_cross_encoder
from support.conformance.switch import clustered
from support.servers import processes
from support.servers.processes import Server
from support.waiting import eventually

MINI = "sie/mini-en"
WORDS = "rain falls tomorrow over the quiet harbour and nobody reads contracts about proteins "
Edit = Callable[[Path], Any]


def bulk(texts: int, words: int = 4) -> bytes:
    """Return a score request of about 13 · `words` tokens per text."""
    items = [{"text": f"{i} " + WORDS * words} for i in range(texts)]
    return json.dumps({"query": {"text": "when does rain fall"}, "items": items}).encode()


def send(server: Server, body: bytes, model: str = MINI) -> socket.socket:
    """Send a request, and return its connection with the answer unread."""
    connection = server.raw()
    head = f"POST /v1/score/{model} HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def receive(connection: socket.socket) -> httpx.Response:
    with connection:
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read())


def complaint(result: subprocess.CompletedProcess[str], *words: str, status: int = 1) -> str:
    """Return the error, which must be the last line of the output."""
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert [line.startswith("Error: ") for line in lines].count(True) == 1
    assert lines[-1].startswith("Error: ")
    for word in words:
        assert word in lines[-1]
    return lines[-1]


# ── settings ──


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lifecycle")


def test_a_port_in_use(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = processes.command_line(folder, "serve", "--port", str(port))
    line = complaint(result, f"127.0.0.1:{port}", "in use", "--port")
    assert result.stderr.strip() == line


@pytest.mark.parametrize(
    ("args", "env", "file", "words"),
    [
        (["--max-body-mbb", "5"], {}, None, ["--max-body-mbb", "--max-body-mb"]),
        ([], {"SIE_MAX_BODY": "5"}, None, ["SIE_MAX_BODY", "did you mean 'max_body_mb'"]),
        ([], {}, "max_bdoy_mb = 5", ["settings.toml", "'max_bdoy_mb'", "did you mean 'max_body_mb'"]),
        (["--port", "x"], {}, None, ["--port", "'x'"]),
        (["--port", "65536"], {}, None, ["--port", "65535"]),
        (["--dtype", "float8"], {}, None, ["--dtype", "float8", "bfloat16"]),
        (["--batch-tokens", "-1"], {}, None, ["--batch-tokens", ">= 0"]),
        (["--model", "=x"], {}, None, ["--model", "ID=DIRECTORY"]),
        (["--models-dir", "/no/such/place"], {}, None, ["--models-dir", "/no/such/place"]),
        (["--adapter", "toy:x=y"], {}, None, ["--adapter", "unknown model 'toy'"]),
        (["--adapter", "toy"], {}, None, ["--adapter", "MODEL:NAME=DIRECTORY"]),
        ([], {"SIE_PORT": "many"}, None, ["SIE_PORT", "int"]),
        ([], {"SIE_OFFLINE": "perhaps"}, None, ["SIE_OFFLINE", "true or false"]),
        ([], {"SIE_DEVICE": "tpu"}, None, ["SIE_DEVICE", "tpu"]),
        ([], {}, 'port = "80"', ["settings.toml", "'port'", "int"]),
        ([], {}, 'model = "toy/bert"', ["settings.toml", "'model'", "array"]),
        ([], {}, "port = =", ["settings.toml", "line 1"]),
        ([], {}, "[server]\nport = 80", ["settings.toml", "'server'"]),
        (["--config", "/no/such/file.toml"], {}, None, ["/no/such/file.toml"]),
        ([], {"SIE_CONFIG": "/no/such/file.toml"}, None, ["/no/such/file.toml"]),
        (["--config", "/"], {}, None, ["cannot read the configuration file /"]),
    ],
)
def test_a_wrong_setting_is_one_line(
    tmp_path: Path, args: list[str], env: dict[str, str], file: str | None, words: list[str]
) -> None:
    if file is not None:
        (tmp_path / "settings.toml").write_text(file)
        args = [*args, "--config", str(tmp_path / "settings.toml")]
    result = processes.command_line(tmp_path, "serve", *args, env=env)
    assert result.returncode in (1, 2)  # 2 if the command line itself is wrong
    line = complaint(result, *words, status=result.returncode)
    assert result.stderr.strip() == line


def test_a_file_that_is_ignored_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "nested.yaml").write_text("[" * 20000)
    with processes.running(tmp_path, "--models-dir", str(tmp_path), "--models-dir-poll-s", "0.1") as server:
        server.scores("sie/mini-en", "rain", ["rain falls"])
        lines = [line for line in server.log.splitlines() if "nested.yaml is ignored" in line]
        assert len(lines) == 1 and "WARNING" in lines[0], server.log


def test_a_missing_gpu(folder: Path) -> None:
    env = {"CUDA_VISIBLE_DEVICES": ""}
    args = ["serve", "--port", str(processes.free_port()), "--device", "cuda"]
    complaint(processes.command_line(folder, *args, env=env), "'cuda'", "--device cpu")


def test_precedence_of_file_environment_and_flags(tmp_path: Path, models: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(
        f'port = {processes.free_port()}\nmax_body_mb = 3\nmodel = ["mine/only={models}/toy/bert"]\n'
    )
    env = {"SIE_CONFIG": str(settings), "SIE_PORT": "1", "SIE_MAX_BODY_MB": "2", "SIE_BASE_URL": "http://x"}
    with processes.running(tmp_path, env=env) as server:  # the port comes from the flag
        assert server.score("mine/only", "q", ["a"])["model"] == "mine/only"
        assert server.get(f"/v1/models/{MINI}").json()["state"] == "available"  # the default was replaced
        too_long = server.post("/v1/score/mine/only", b" " * (2 * 2**20 + 1))
        assert too_long.status_code == 413 and "2 MiB" in too_long.json()["error"]["message"]


# ── checkpoints that are refused ──


def truncate(name: str, size: int) -> Edit:
    return lambda d: (d / name).write_bytes((d / name).read_bytes()[:size])


def remove(name: str) -> Edit:
    return lambda d: (d / name).unlink()


def write(name: str, content: str) -> Edit:
    return lambda d: (d / name).write_text(content)


def listed_as(content: str) -> Edit:
    """Write only an index of the weights."""
    return lambda d: (
        (d / "model.safetensors").unlink(),
        (d / "model.safetensors.index.json").write_text(content),
    )


def config(**changes: Any) -> Edit:
    return lambda d: processes.edit_json(d / "config.json", **changes)


def weights(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Edit:
    return lambda d: processes.edit_weights(d, edit)


def pickled(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Edit:
    """Write the weights as a pickle with `torch.save`."""

    def work(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        edit(tensors)
        torch.save(tensors, directory / "pytorch_model.bin")
        (directory / "model.safetensors").unlink()

    return work


BIAS = "bert.pooler.dense.bias"
HEAD = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}


def headed(directory: Path) -> None:
    """Give an encoder the class of a cross-encoder; with modules.json its bare encoder would be served."""
    config(**HEAD)(directory)
    remove("modules.json")(directory)


BROKEN: dict[str, tuple[str, Edit, list[str]]] = {
    "truncated weights": ("toy/bert", truncate("model.safetensors", 20_000), ["model.safetensors", "truncated"]),
    "empty weights": ("toy/bert", truncate("model.safetensors", 0), ["model.safetensors"]),
    "no weights": ("toy/bert", remove("model.safetensors"), ["no weights", "model.safetensors"]),
    "unknown architecture": ("toy/bert", config(architectures=["PhiForCausalLM"]), ["'PhiForCausalLM'", "Supported"]),
    "left-over weights": ("toy/bert", weights(lambda w: w.update(extra=torch.zeros(2))), ["1 weights", "extra"]),
    "missing weights": ("toy/bert", weights(lambda w: w.pop("bert.pooler.dense.bias")), ["'bert.pooler.dense.bias'"]),
    "wrong shape": ("toy/bert", config(intermediate_size=100), ["[96, 48]", "[100, 48]"]),
    "a head that was never trained": ("toy/encoder", headed, ["lacks the weight", "bert."]),
    "an encoder without a head": ("toy/encoder", remove("modules.json"), ["without a head"]),
    "labels that are a number": ("toy/bert", config(id2label=5), ["config.json", "unexpected type"]),
    "a word for a number of labels": ("toy/bert", config(num_labels="1"), ["num_labels is '1'"]),
    "settings that are a number": ("toy/bert", config(sentence_transformers=5), ["config.json", "unexpected type"]),
    "nesting without end": ("toy/bert", write("config.json", "[" * 100_000), ["config.json cannot be read"]),
    "an index that is a list": ("toy/bert", listed_as("[]"), ["is not a weight index"]),
    "an index of numbers": ("toy/bert", listed_as('{"weight_map": {"a": 5}}'), ["is not a weight index"]),
    "an index that names no file": ("toy/bert", listed_as('{"weight_map": {"a": ""}}'), ["names ''", "missing"]),
    "an index of a name too long": (
        "toy/bert",
        listed_as(json.dumps({"weight_map": {"a": "x" * 300}})),
        ["xxx", "which is missing"],
    ),
    "whole numbers": ("toy/bert", weights(lambda w: w.update({BIAS: w[BIAS].long()})), [BIAS, "torch.int64"]),
    "sparse weights": ("toy/bert", pickled(lambda w: w.update({BIAS: w[BIAS].to_sparse()})), [BIAS, "sparse"]),
    "weights without values": ("toy/bert", pickled(lambda w: w.update({BIAS: w[BIAS].to("meta")})), [BIAS, "values"]),
    "3 labels": ("toy/bert", config(id2label={"0": "a", "1": "b", "2": "c"}), ["3 labels"]),
    "no tokenizer": ("toy/bert", remove("tokenizer.json"), ["tokenizer.json is missing"]),
    "no config": ("toy/bert", remove("config.json"), ["config.json is missing"]),
    "config that is not JSON": ("toy/bert", truncate("config.json", 9), ["config.json cannot be read"]),
    "heads that do not divide": ("toy/bert", config(num_attention_heads=5), ["num_attention_heads"]),
    "a size that is a word": ("toy/bert", config(hidden_size="48"), ["hidden_size is '48'"]),
    "relative positions": ("toy/bert", config(position_embedding_type="relative_key"), ["'relative_key'"]),
    "unknown activation": ("toy/bert", config(hidden_act="swoosh"), ["'swoosh'"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """Return a directory with every broken checkpoint and a good one."""
    root = tmp_path_factory.mktemp("broken")
    for name, (source, edit, _) in BROKEN.items():
        shutil.copytree(models / source, root / name.replace(" ", "-"))
        edit(root / name.replace(" ", "-"))
    shutil.copytree(models / "toy/bert", root / "good")
    (root / "empty").mkdir()
    return root


AT_START = ["truncated weights", "unknown architecture", "left-over weights", "missing weights", "3 labels"]
AT_START += ["a head that was never trained", "no tokenizer", "no config", "heads that do not divide"]


@pytest.mark.parametrize("name", AT_START)
def test_a_server_does_not_start_with_a_broken_model(folder: Path, broken: Path, name: str) -> None:
    directory = broken / name.replace(" ", "-")
    args = ["--port", str(processes.free_port()), "--model", f"my/model={directory}"]
    complaint(processes.command_line(folder, "serve", *args), str(directory), *BROKEN[name][2])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "No such file"),
        ("empty", "is empty"),
        ("good/config.json", "it is a file"),
    ],
)
def test_a_server_does_not_start_without_a_model(folder: Path, broken: Path, name: str, words: str) -> None:
    args = ["--port", str(processes.free_port()), "--model", f"my/model={broken / name}"]
    complaint(processes.command_line(folder, "serve", *args), str(broken / name), words)


def test_a_server_does_not_start_when_one_of_two_models_is_broken(folder: Path, broken: Path) -> None:
    args = ["--port", str(processes.free_port()), "--model", f"my/model={broken / 'good'}"]
    args += ["--model", f"my/other={broken / 'no-weights'}"]
    complaint(processes.command_line(folder, "serve", *args), "no weights")


class Hub(threading.Thread):
    """Listens in place of the hub, counts connections, and closes them."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.visits = 0

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.visits += 1
            connection.close()


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    hub = Hub()
    hub.start()
    yield hub
    hub.listener.close()


@pytest.fixture(scope="module")
def fragile(folder: Path, broken: Path, hub: Hub) -> Iterator[Server]:
    """Serve all broken models, none of which is loaded at start."""
    args = ["--models-dir", str(broken), "--batch-tokens", "2048"]
    with processes.running(folder, *args, env={"HF_ENDPOINT": hub.url}) as server:
        yield server


def load_failure(answer: httpx.Response, *words: str) -> dict[str, Any]:
    assert answer.status_code == 502, answer.text
    body = answer.json()
    assert body["code"] == answer.headers["x-sie-error-code"] == "MODEL_LOAD_FAILED"
    assert body["detail"] == body["error"]
    assert "retry-after" not in answer.headers
    for word in words:
        assert word in body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize("name", [name for name in BROKEN if name != "no config"])
def test_a_broken_model_is_a_502_and_others_keep_answering(fragile: Server, name: str) -> None:
    model = name.replace(" ", "-")
    for _ in range(2):
        error = load_failure(fragile.post(f"/v1/score/{model}", bulk(1)), *BROKEN[name][2])
        assert (error["error_class"], error["permanent"], error["attempts"]) == (
            "UnsupportedCheckpoint",
            True,
            1,
        )
    info = fragile.get(f"/v1/models/{model}").json()
    assert (info["state"], info["loaded"], info["last_error"]) == ("failed", False, error["message"])
    assert fragile.score("good", "rain", ["rain falls"])["scores"]
    assert fragile.score(MINI, "rain", ["rain falls"])["scores"]


def test_a_directory_without_config_is_not_a_model(fragile: Server) -> None:
    for name in ("no-config", "empty"):
        assert fragile.post(f"/v1/score/{name}", bulk(1)).status_code == 404


def test_known_ids_are_fetched_and_unknown_ones_never(fragile: Server, hub: Hub, broken: Path) -> None:
    unknown = [
        "gpt2",
        "BAAI/bge-reranker-v2",
        "org/new-model",
        str(broken / "good"),
        "x=gpt2",
        "baai/bge-reranker-base",
    ]
    for model in unknown:
        assert fragile.post(f"/v1/score/{model}", bulk(1)).status_code == 404
        assert fragile.post(f"/v1/encode/{model}", b'{"items": [{"text": "a"}]}').status_code == 404
        assert fragile.get(f"/v1/models/{model}").status_code == 404
    assert hub.visits == 0
    load_failure(fragile.post("/v1/score/BAAI/bge-reranker-base", bulk(1)))
    assert hub.visits > 0


def test_a_model_that_cannot_be_fetched_says_what_to_do(server: Server) -> None:
    started = time.monotonic()
    answer = server.post("/v1/score/BAAI/bge-reranker-large", bulk(1))
    error = load_failure(answer, "'BAAI/bge-reranker-large'", "local directory", MINI, "--model")
    assert error["permanent"] is False and error["attempts"] == 1 and error["error_class"]
    assert time.monotonic() - started < 20  # the caller does not wait long
    assert server.score(MINI, "rain", ["rain falls"])["scores"]
    assert server.get("/v1/models/BAAI/bge-reranker-large").json()["state"] == "failed"


# ── shutdown ──


def test_sigterm_lets_running_requests_finish(folder: Path) -> None:
    with processes.running(folder, "--batch-tokens", "256") as server:
        body = bulk(12)
        running = [send(server, body) for _ in range(20)]
        for _ in range(3):  # answered after all earlier requests were accepted
            server.get("/healthz")
        assert server.metric("sie_queue_tokens") > 0
        answered = server.metric("sie_requests_total", route="score", model=MINI, status="200")
        assert answered < 20
        server.process.send_signal(SIGTERM)
        time.sleep(0.2)
        try:
            while (late := server.post(f"/v1/score/{MINI}", bulk(1))).status_code == 200:
                assert clustered()  # it notices the signal within a second
            assert (late.status_code, late.json()["code"]) == (503, "QUEUE_FULL")
            assert int(late.headers["retry-after"]) >= 1
        except httpx.TransportError:
            pass  # it no longer listens
        answers = [receive(connection) for connection in running]
        assert [answer.status_code for answer in answers] == [200] * 20
        assert all(len(answer.json()["scores"]) == 12 for answer in answers)
        assert server.process.wait(60) == 0


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_an_idle_server_ends_at_once(folder: Path, models: Path, number: int) -> None:
    args = ["--model", f"toy/bert={models}/toy/bert", "--batch-tokens", "512", "--drain-s", "300"]
    with processes.running(folder, *args) as server, httpx.Client(base_url=server.base_url) as client:
        assert client.get("/healthz").status_code == 200  # the connection stays open
        assert server.signal_and_wait(number, within=30) == 0


def test_a_shutdown_does_not_wait_longer_than_drain_s(folder: Path) -> None:
    with processes.running(folder, "--batch-tokens", "256", "--drain-s", "1") as server:
        connection = send(server, bulk(1500, words=16))  # more than a minute of work
        assert eventually(lambda: server.metric("sie_queue_tokens") > 0)
        server.process.send_signal(SIGTERM)
        answer = receive(connection)
        # so that clients retry on another server; the model replica of a cluster ends before its ingress
        code = "MODEL_LOADING" if clustered() else "QUEUE_FULL"
        assert (answer.status_code, answer.json()["code"]) == (503, code)
        assert server.process.wait(45) == 0


def test_a_shutdown_does_not_wait_for_a_load_that_hangs(folder: Path) -> None:
    # runs in the server before its own code: one file system call never returns
    (folder / "sitecustomize.py").write_text(
        "import pathlib, time\n"
        "real = pathlib.Path.iterdir\n"
        "def hanging(path):\n"
        "    if path.name == 'stuck':\n"
        "        time.sleep(600)\n"
        "    return real(path)\n"
        "pathlib.Path.iterdir = hanging\n"
    )
    stuck = make_cross_encoder(folder / "hanging" / "stuck", "bert")
    args = ["--models-dir", str(stuck.parent), "--load-wait-s", "0.2", "--drain-s", "1"]
    path = os.pathsep.join([str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    with processes.running(folder, *args, env={"PYTHONPATH": path}) as server:
        answer = server.post("/v1/score/stuck", {"query": {"text": "a"}, "items": [{"text": "b"}]})
        assert (answer.status_code, answer.json()["code"]) == (503, "MODEL_LOADING")
        assert server.score(MINI, "when does rain fall", ["rain falls"])["scores"]
        assert server.signal_and_wait(within=60) == 0
    # Serve kills a replica that does not end, and with it its log
    assert clustered() or "abandoning work that is still running: sie-read" in server.log


# ── disconnects and overload ──


@pytest.fixture(scope="module")
def busy(folder: Path) -> Iterator[Server]:
    """Serve in small batches, so that queues are long."""
    with processes.running(folder, "--batch-tokens", "256", "--dtype", "float32") as server:
        yield server


def test_a_caller_that_hangs_up_is_dropped(busy: Server) -> None:
    cancelled, tokens = busy.metric("sie_cancelled_total"), busy.metric("sie_tokens_total", model=MINI)
    connection = send(busy, bulk(1500, words=16))  # more than a minute of work
    assert eventually(lambda: busy.metric("sie_queue_tokens") > 50_000)
    connection.close()
    assert eventually(lambda: busy.metric("sie_cancelled_total") == cancelled + 1)
    assert eventually(lambda: busy.metric("sie_queue_tokens") == 0, within=30)
    assert busy.metric("sie_tokens_total", model=MINI) == tokens
    started = time.monotonic()
    busy.score(MINI, "rain", ["rain falls"])
    assert time.monotonic() - started < 30
    assert busy.metric("sie_requests_total", route="score", model=MINI, status="499") >= 1


def test_a_body_that_breaks_off(busy: Server) -> None:
    cancelled = busy.metric("sie_cancelled_total")
    for close in (lambda c: c.close(), lambda c: c.shutdown(socket.SHUT_WR)):
        connection = busy.raw()
        head = f"POST /v1/score/{MINI} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        connection.sendall(head.encode() + b'{"query": {"text": ')
        close(connection)
    assert eventually(lambda: busy.metric("sie_cancelled_total") == cancelled + 2)
    assert busy.score(MINI, "rain", ["rain falls"])["scores"]


def test_bytes_that_are_not_http(busy: Server) -> None:
    for nonsense in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"\x00" * 100, b"POST /v1/score/x\r\n\r\n"):
        with busy.raw() as connection:
            connection.sendall(nonsense + b"\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100).startswith((b"HTTP/1.1 4", b""))
    assert busy.score(MINI, "rain", ["rain falls"])["scores"]


def test_a_small_request_need_not_wait_for_a_large_one(busy: Server) -> None:
    with send(busy, bulk(1000, words=16)):
        assert eventually(lambda: busy.metric("sie_queue_tokens") > 50_000)
        busy.score(MINI, "rain", ["rain falls"])
        assert busy.metric("sie_queue_tokens") > 10_000  # the large request is still queued
    assert eventually(lambda: busy.metric("sie_queue_tokens") == 0)


def test_a_full_queue_sends_retry_after_and_the_client_waits(folder: Path) -> None:
    args = ["--batch-tokens", "256", "--max-queue-tokens", "500"]
    with processes.running(folder, *args) as server:
        first = send(server, bulk(150, words=8))  # larger than the queue, but the queue is empty
        assert eventually(lambda: server.metric("sie_queue_tokens") > 500)
        answer = server.post(f"/v1/score/{MINI}", bulk(5))
        assert (answer.status_code, answer.json()["code"]) == (503, "QUEUE_FULL")
        assert answer.headers["retry-after"].isdigit() and int(answer.headers["retry-after"]) >= 1
        assert "max_queue_tokens" in answer.json()["error"]["message"]
        refused = server.metric("sie_requests_total", route="score", model=MINI, status="503")
        assert refused == 1
        with SIEClient(server.base_url) as client:
            result = client.score(MINI, Item(text="rain"), [Item(text=WORDS)] * 20)
        assert len(result["scores"]) == 20
        assert server.metric("sie_requests_total", route="score", model=MINI, status="503") > refused
        assert receive(first).status_code == 200


# ── the other commands ──


LINES = '{"id": "a", "text": "The cat sleeps."}\n\n{"text": "Machine learning learns from data."}\n'


def test_score_from_a_file(tmp_path: Path, server: Server) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(LINES, encoding="utf-8")
    args = ["score", "--query", "What is machine learning?", "--json", "--dtype", "float32", str(path)]
    result = processes.command_line(tmp_path, *args)
    assert (result.returncode, result.stderr) == (0, "")
    answer = json.loads(result.stdout)
    assert list(answer) == ["model", "query_id", "scores", "usage", "score_type"]
    assert [entry["item_id"] for entry in answer["scores"]] == ["item-1", "a"]
    served = server.scores(
        MINI, "What is machine learning?", ["The cat sleeps.", "Machine learning learns from data."]
    )
    assert [e["score"] for e in answer["scores"]] == pytest.approx(served[::-1], abs=1e-5)


def test_score_from_standard_input_in_a_pipe(tmp_path: Path) -> None:
    lines = LINES + '{"id": "[/odd]", "text": "[bold]not markup[/nonsense] :smile:"}\n'
    result = processes.command_line(tmp_path, "score", "-q", "[what] is machine learning?", stdin=lines)
    assert result.returncode == 0, result.stderr
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert rows[0][2:] == ["item-1", "Machine learning learns from data."]
    assert ["[/odd]", "[bold]not markup[/nonsense] :smile:"] in [row[2:] for row in rows]


def test_score_top_n_with_a_model_of_a_directory(tmp_path: Path, models: Path) -> None:
    args = ["-q", "rain", "--top-n", "1", "--json", "--model", f"my/bert={models}/toy/bert", "-"]
    result = processes.command_line(tmp_path, "score", *args, stdin=LINES)
    answer = json.loads(result.stdout)
    assert answer["model"] == "my/bert" and len(answer["scores"]) == 1


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (LINES + "not json\n", ["line 4", "expected"]),
        (LINES + '{"id": "x"}\n', ["line 4", "no key 'text'", "--text-column"]),
        (LINES + '{"text": 5}\n', ["line 4", "'text' is a number"]),
        ("[5]\n", ["entry 1", "got a number"]),
        ("\n \n", ["no texts"]),
        ("", ["no texts"]),
    ],
)
def test_score_names_the_bad_line(tmp_path: Path, lines: str, words: list[str]) -> None:
    result = processes.command_line(tmp_path, "score", "-q", "rain", "-", stdin=lines)
    assert result.stderr.strip() == complaint(result, *words)
    assert result.stdout == ""


def test_score_errors_that_need_no_model(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"text": "Zürich"}\n'.encode("latin-1"))
    complaint(processes.command_line(tmp_path, "score", "-q", "x", str(path)), "UTF-8")
    nowhere = str(tmp_path / "nowhere.jsonl")
    complaint(processes.command_line(tmp_path, "score", "-q", "x", nowhere), "No such file")
    complaint(processes.command_line(tmp_path, "score", str(path)), "--query", status=2)
    complaint(processes.command_line(tmp_path, "score", "-q", "x", "--top-n", "0"), "--top-n", status=2)


def test_score_with_a_model_that_cannot_be_loaded(tmp_path: Path, broken: Path) -> None:
    args = ["score", "-q", "x", "--model", f"m={broken / '3-labels'}"]
    complaint(processes.command_line(tmp_path, *args, stdin=LINES), "3 labels")
    args = ["score", "-q", "x", "--model", "org/model"]
    complaint(processes.command_line(tmp_path, *args, stdin=LINES), "'org/model'", MINI)


def test_models_are_listed(tmp_path: Path, models: Path) -> None:
    table = processes.command_line(tmp_path, "models", env={"COLUMNS": "200"})
    assert table.returncode == 0 and MINI in table.stdout and "BAAI/bge-reranker-v2-m3" in table.stdout
    result = processes.command_line(tmp_path, "models", "--json", "--models-dir", str(models))
    rows = {row["id"]: row for row in json.loads(result.stdout)}
    assert rows[MINI]["source"] == "embedded" and rows[MINI]["outputs"] == ["score", "dense", "multivector"]
    assert rows["toy/bert"]["source"] == str(models / "toy/bert")
    assert rows["BAAI/bge-reranker-v2-m3"]["max_seq_length"] == 1024


def test_help_and_version(tmp_path: Path) -> None:
    assert __version__ in processes.command_line(tmp_path, "--version").stdout
    shown = processes.command_line(tmp_path, "serve", "--help", env={"COLUMNS": "200"})
    assert shown.returncode == 0
    for name in ("--port", "--models-dir", "--max-queue-tokens", "SIE_DRAIN_S"):
        assert name in shown.stdout
    complaint(processes.command_line(tmp_path, "serv"), "'serve'", status=2)
    for group in ([], ["admin"]):
        result = processes.command_line(tmp_path, *group)
        assert result.returncode == 2 and "Commands:" in result.stderr, result.stderr


def test_nothing_heavy_is_imported_for_a_wrong_option(tmp_path: Path) -> None:
    assert os.name == "posix"
    result = processes.command_line(tmp_path, "serve", "--prot", "1", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert result.returncode == 2
    assert "sie_server.cli" in result.stderr and "| torch" not in result.stderr
