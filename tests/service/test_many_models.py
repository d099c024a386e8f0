"""More models than fit in memory, and weights that change on disk, tested through a real server."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.checkpoints import cross_encoders
from support.servers import processes
from support.servers.processes import Server
from support.waiting import eventually

QUERY, TEXTS = "how do stars burn", ["stars burn hydrogen", "rain falls tomorrow"]
POLL = ("--models-dir-poll-s", "0.1", "--batch-tokens", "8", "--dtype", "float32", "--threads", "1")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return three models of about 5 MiB."""
    for seed, name in enumerate("abc"):
        cross_encoders.make_cross_encoder(
            tmp_path / "models" / name, "bert", seed=seed, hidden_size=256, num_hidden_layers=2
        )
    return tmp_path / "models"


@contextmanager
def traffic(server: Server, model: str) -> Iterator[list[Any]]:
    """Send requests without pause in a thread; yield the list of answers, each the scores or the error's body."""
    answers: list[Any] = []
    over = threading.Event()

    def ask() -> None:
        body = {"query": {"text": QUERY}, "items": [{"text": text} for text in TEXTS]}
        while not over.is_set():
            answer = server.post(f"/v1/score/{model}", body)
            entries = answer.json().get("scores") if answer.status_code == 200 else None
            answers.append(tuple((e["item_id"], e["score"]) for e in entries) if entries else answer.text)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        over.set()
        thread.join(60)


def test_three_models_in_rotation_where_two_fit(tmp_path: Path, root: Path) -> None:
    size = (root / "a/model.safetensors").stat().st_size / 2**20
    args = ["--models-dir", str(root), "--model", "sie/mini-en", *POLL, "--memory-budget-mb"]
    embedded = 87  # MiB in fp32; pinned because --model names it
    with processes.running(tmp_path, *args, str(round(embedded + 2 * size + 1))) as server:
        expected = {name: server.scores(name, QUERY, TEXTS) for name in "abc"}
        for name in "abcabcacb":
            assert server.scores(name, QUERY, TEXTS) == expected[name]
        loaded = [m for m in server.get("/v1/models").json()["models"] if m["loaded"]]
        assert {m["name"] for m in loaded if m["pinned"]} == {"sie/mini-en"}
        assert len(loaded) == 3
        assert sum(server.metric("sie_model_evictions_total", model=name) for name in "abc") >= 8
        assert sum(m["memory_bytes"] for m in loaded) <= server.metric("sie_memory_budget_bytes")
        assert server.metric("sie_requests_total", route="score", model="a", status="200") == 4


def test_weights_replaced_on_disk_during_traffic(tmp_path: Path, root: Path) -> None:
    shutil.copy(root / "a/tokenizer.json", root / "b/tokenizer.json")
    with processes.running(tmp_path, "--models-dir", str(root), *POLL) as server:
        first = server.scores("a", QUERY, TEXTS)
        weights, good = root / "a/model.safetensors", (root / "b/model.safetensors").read_bytes()

        def info() -> dict[str, Any]:
            known: dict[str, Any] = server.get("/v1/models/a").json()
            return known

        with traffic(server, "a") as answers:
            weights.write_bytes(good[: len(good) // 2])  # a copy that is interrupted
            assert eventually(lambda: "truncated" in (info()["last_error"] or ""))
            assert info()["loaded"] and server.scores("a", QUERY, TEXTS) == first
            weights.write_bytes(good)
            assert eventually(lambda: server.metric("sie_model_swaps_total", model="a") == 1)
            assert info()["last_error"] is None
            second = server.scores("a", QUERY, TEXTS)
        assert second == server.scores("b", QUERY, TEXTS) != first
        assert len(set(answers)) == 2, set(answers)
        shutil.rmtree(root / "b")
        assert eventually(lambda: server.get("/v1/models/b").status_code == 404)
