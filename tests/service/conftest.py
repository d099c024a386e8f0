"""One server with models of every kind, shared by all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sie_server.serving.loading.probe import TEXTS
from support.checkpoints import cross_encoders
from support.servers import processes
from support.servers.inprocess import Looks
from support.servers.processes import Server

MAX_BODY_MB = 8


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    """Observe the scans of the models directory."""
    return Looks(monkeypatch)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory for --models-dir, with models in ORG/NAME."""
    root = tmp_path_factory.mktemp("models")
    cross_encoders.make_cross_encoder(root / "toy/bert", "bert")
    cross_encoders.make_cross_encoder(root / "toy/roberta", "roberta", seed=1)
    cross_encoders.make_cross_encoder(root / "toy/xlm-roberta", "xlm-roberta", seed=2)
    processes.make_encoder(root / "toy/encoder")
    # the texts of the probe pass, so that the models load
    processes.poison_words(root / "toy/nan", root / "toy/bert", TEXTS)
    processes.poison_words(root / "toy/nan-encoder", root / "toy/encoder", TEXTS)
    return root


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Server]:
    """Serve `models` and sie/mini-en in fp32."""
    args = ["--models-dir", str(models), "--dtype", "float32", "--batch-tokens", "2048"]
    with processes.running(tmp_path_factory.mktemp("server"), *args, "--max-body-mb", str(MAX_BODY_MB)) as it:
        yield it


@pytest.fixture(scope="session")
def documented(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Server]:
    """Serve tiny models under the ids of the documentation."""
    named = {"BAAI/bge-reranker-v2-m3": "toy/xlm-roberta", "BAAI/bge-m3": "toy/encoder"}
    args = [f"--model={name}={models / path}" for name, path in named.items()]
    folder = tmp_path_factory.mktemp("documented")
    with processes.running(folder, *args, "--model=sie/mini-en", "--dtype=float32") as server:
        yield server
