"""A real server refuses broken checkpoints and invalid vectors, and adds the prompts of known ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

from support.checkpoints.colbert import make_stanford
from support.checkpoints.cross_encoders import make_cross_encoder
from support.checkpoints.decoders import make_decoder
from support.checkpoints.encoders import make_encoder
from support.servers import processes
from support.servers.processes import MSGPACK, Server

E5 = "intfloat/e5-small-v2"
DIM = 16
TEMPLATE = "name: mine\nsource: here\npositive: 'yes'\npieces: ['{query}', ' ok']\n"


class Code:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    models = root / "models"
    make_stanford(models / "toy/colbert", "bert", {"dim": DIM})
    make_cross_encoder(models / "bad/code", "bert")
    (models / "bad/code/model.safetensors").unlink()
    torch.save({"weight": Code(root / "ran")}, models / "bad/code/pytorch_model.bin")
    make_cross_encoder(models / "bad/headless", "bert")
    processes.edit_weights(models / "bad/headless", lambda tensors: tensors.pop("classifier.weight"))
    make_decoder(models / "bad/template", "qwen3")
    (models / "bad/template/sie_reranker.yaml").write_text(TEMPLATE)
    make_encoder(root / "encoder")
    return root


@pytest.fixture(scope="module")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    own = [f"{name}={root / 'encoder'}" for name in (E5, "toy/encoder")]
    args = ["--models-dir", str(root / "models"), "--dtype", "float32", "--model", own[0], "--model", own[1]]
    with processes.running(tmp_path_factory.mktemp("server"), *args) as server:
        yield server


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("bad/code", ("code is never run",)),
        ("bad/headless", ("lacks the weight 'classifier.weight'",)),
        ("bad/template", ("lacks the placeholder", "{document}")),
    ],
)
def test_a_broken_checkpoint_is_refused_with_its_reason(
    server: Server, root: Path, model: str, words: tuple[str, ...]
) -> None:
    answer = server.post(f"/v1/score/{model}", {"query": {"text": "rain"}, "items": [{"text": "falls"}]})
    assert answer.status_code >= 500 and "MODEL_LOAD_FAILED" in answer.text
    assert all(word in answer.text for word in words), answer.text
    assert not (root / "ran").exists()


def vectors(width: int, dtype: str = "<f4") -> dict[bytes, Any]:
    array = np.full((2, width), 1, dtype)
    return {b"nd": True, b"type": dtype, b"kind": b"", b"shape": [2, width], b"data": array.tobytes()}


@pytest.mark.parametrize(
    ("item", "where", "words"),
    [
        ({"multivector": vectors(DIM + 1)}, "$.items[0].multivector", ("17", "16")),
        ({"multivector": vectors(DIM, "<i8")}, "$.items[0].multivector", ("int64",)),
        ({"text": "rain", "multivector": vectors(DIM)}, "$.items[0].multivector", ("not both",)),
    ],
)
def test_vectors_that_do_not_fit(server: Server, item: Any, where: str, words: tuple[str, ...]) -> None:
    body = {"query": {"text": "rain"}, "items": [item]}
    answer = server.post("/v1/score/toy/colbert", body, content_type=MSGPACK)
    assert answer.status_code == 400 and where in answer.text, answer.text
    assert all(word in answer.text for word in words), answer.text


def test_texts_and_vectors_in_one_request(server: Server) -> None:
    body = {"query": {"text": "rain"}, "items": [{"multivector": vectors(DIM)}, {"text": "falls"}]}
    answer = server.post("/v1/score/toy/colbert", body, content_type=MSGPACK)
    assert answer.status_code == 400 and "$.items[1]" in answer.text, answer.text


def dense(server: Server, model: str, text: str, **params: Any) -> Any:
    body = {"items": [{"text": text}], "params": params}
    answer = server.post(f"/v1/encode/{model}", body, content_type=MSGPACK, accept=MSGPACK)
    assert answer.status_code == 200, answer.text
    return msgpack.unpackb(answer.content, strict_map_key=False)["items"][0]["dense"]["values"]


@pytest.mark.parametrize(
    ("is_query", "prompt"), [(True, "query: "), (False, "passage: "), (None, "passage: ")]
)
def test_a_known_id_adds_prompts_missing_from_its_files(server: Server, is_query: Any, prompt: str) -> None:
    asked = {} if is_query is None else {"is_query": is_query}
    assert dense(server, E5, "rain falls", **asked) == dense(server, "toy/encoder", f"{prompt}rain falls")
    assert dense(server, E5, "rain falls", **asked) != dense(server, "toy/encoder", "rain falls", **asked)
