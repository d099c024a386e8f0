"""One server for all clients, with a model for probabilities, one for logits and one for similarities."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.checkpoints import cross_encoders
from support.requests.questions import KEY
from support.servers import processes
from support.servers.processes import Server

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise its import uses the network


@pytest.fixture(scope="session")
def checkpoint_dirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    cross_encoders.make_cross_encoder(root / "bert", "bert")
    cross_encoders.make_cross_encoder(root / "logit", "bert", seed=4)
    identity = {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.0.0"}
    processes.edit_json(root / "logit" / "config.json", sentence_transformers=identity)
    processes.make_encoder(root / "encoder")
    return root


def _arguments(root: Path) -> list[str]:
    models = [f"--model=toy/{name}={root / name}" for name in ("bert", "logit", "encoder")]
    limits = ["--batch-tokens=2048", "--max-body-mb=2"]
    return [*models, "--model=sie/mini-en", "--dtype=float32", *limits]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, checkpoint_dirs: Path) -> Iterator[Server]:
    with processes.running(tmp_path_factory.mktemp("server"), *_arguments(checkpoint_dirs)) as it:
        yield it


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory, checkpoint_dirs: Path) -> Iterator[Server]:
    """Serve the same models with an API key."""
    env = {"SIE_API_KEYS": f"web:infer:{KEY}"}
    with processes.running(tmp_path_factory.mktemp("guarded"), *_arguments(checkpoint_dirs), env=env) as it:
        yield it
