"""bge-m3 equals FlagEmbedding's formulas in plain torch on transformers; SPLADE equals `SparseEncoder`."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SparseEncoder
from starlette.testclient import TestClient
from torch.nn.functional import normalize
from transformers import AutoTokenizer, XLMRobertaModel

from sie_server.engine.engine import Engine
from sie_server.engine.kinds import sparse
from sie_server.errors import ModelLoadFailed
from support.checkpoints.cross_encoders import random_text
from support.checkpoints.encoders import make_bge_m3, make_splade, write_json
from support.checkpoints.library import make_library_splade
from support.device import DEVICE
from support.requests.jobs import run_job
from support.servers.inprocess import ask, asking, in_order, post

RNG = random.Random(6)
TEXTS = [random_text(RNG, n) for n in (0, 1, 2, 15, 40, 300)] + ["rain rain rain", "東京 ☃"]
QUERY = "how stars burn hydrogen"
SPLADES = {
    f"{s}-{f}-{t}": (s, f, t) for s, f, t in product(("max", "sum"), ("relu", "log1p_relu"), (True, False))
}


@dataclass
class Reference:
    """Vectors of one text by the formulas of FlagEmbedding 1.4, `EncoderOnlyEmbedderM3ModelForInference`."""

    dense: torch.Tensor
    sparse: torch.Tensor  # [vocabulary]
    tokens: torch.Tensor


class M3:
    def __init__(self, directory: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.model = XLMRobertaModel.from_pretrained(directory).eval()
        self.linear = {
            name: torch.load(directory / f"{name}_linear.pt", weights_only=True)
            for name in ("sparse", "colbert")
        }

    @torch.inference_mode()
    def __call__(self, text: str) -> Reference:
        inputs = self.tokenizer(text, truncation=True, max_length=128, return_tensors="pt")
        hidden = self.model(**inputs).last_hidden_state[0]
        sparse, colbert = self.linear["sparse"], self.linear["colbert"]
        weights = torch.relu(hidden @ sparse["weight"].T + sparse["bias"])[:, 0]
        vocabulary = torch.zeros(self.model.config.vocab_size)
        vocabulary = vocabulary.scatter_reduce(0, inputs.input_ids[0], weights, "amax")
        vocabulary[[0, 1, 2, 3]] = 0.0  # <s>, <pad>, </s>, <unk>
        tokens = normalize(hidden[1:] @ colbert["weight"].T + colbert["bias"], dim=-1)
        return Reference(normalize(hidden[0], dim=0), vocabulary, tokens)

    def scores(self, query: str, text: str) -> dict[str, float]:
        q, d = self(query), self(text)
        return {
            "dense": float(q.dense @ d.dense),
            "sparse": float(q.sparse @ d.sparse),
            "multivector": float((q.tokens @ d.tokens.T).amax(1).mean()),
        }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sparse")
    made = {
        name: make_splade(root / name, strategy=s, function=f, tied=t) for name, (s, f, t) in SPLADES.items()
    }
    # the first SPLADE models had no module files, for which SparseEncoder uses its defaults
    made["bare"] = make_splade(root / "bare")
    for file in ("modules.json", "1_SpladePooling/config.json", "config_sentence_transformers.json"):
        (root / "bare" / file).unlink()
    (root / "bare" / "sentence_bert_config.json").unlink()
    return {**made, "m3": make_bge_m3(root / "m3")}


@pytest.fixture(scope="module")
def client(folders: dict[str, Path]) -> Iterator[TestClient]:
    with asking(folders) as client:
        yield client


@pytest.fixture(scope="module")
def m3(folders: dict[str, Path]) -> M3:
    return M3(folders["m3"])


def encode(
    client: TestClient, model: str, texts: list[str], outputs: list[str], status: int = 200, **more: Any
) -> Any:
    body = {"items": [{"text": text} for text in texts], "params": {"output_types": outputs, **more}}
    return post(client, f"/v1/encode/{model}", body, status)


def unpacked(item: Any) -> np.ndarray[Any, Any]:
    """Return a sparse vector at full width, and check that its indices increase and its values are positive."""
    sparse = item["sparse"]
    assert sparse["indices"] == sorted(set(sparse["indices"]))
    assert all(value > 0 for value in sparse["values"])
    values = np.zeros(sparse["dims"])
    values[sparse["indices"]] = sparse["values"]
    return values


# ── bge-m3 ──


def test_bge_m3_returns_all_three_outputs(client: TestClient, m3: M3) -> None:
    answer = encode(client, "m3", TEXTS, ["dense", "sparse", "multivector"])
    entries = 0
    for text, item in zip(TEXTS, answer["items"], strict=True):
        expected = m3(text)
        np.testing.assert_allclose(item["dense"]["values"], expected.dense, atol=1e-4)
        np.testing.assert_allclose(unpacked(item), expected.sparse, atol=1e-4)
        np.testing.assert_allclose(item["multivector"]["values"], expected.tokens, atol=1e-4)
        entries += len(item["sparse"]["indices"])
    assert entries > 20
    assert answer["items"][5]["truncated"]


def test_bge_m3_alone_equals_batched(client: TestClient) -> None:
    together = encode(client, "m3", TEXTS, ["sparse"])["items"]
    for text, item in zip(TEXTS, together, strict=True):
        [alone] = encode(client, "m3", [text], ["sparse"])["items"]
        np.testing.assert_allclose(unpacked(alone), unpacked(item), atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "kind"), [("dense", "cosine"), ("sparse", "dot"), ("multivector", "maxsim")]
)
def test_bge_m3_scores_by_each_similarity(client: TestClient, m3: M3, mode: str, kind: str) -> None:
    answer = ask(client, "m3", QUERY, TEXTS, score_mode=mode)
    assert answer["score_type"] == kind
    expected = [m3.scores(QUERY, text)[mode] for text in TEXTS]
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(in_order(answer), expected, atol=1e-4)


@pytest.mark.parametrize("weights", [None, [1.0, 1.0, 1.0], [0.4, 0.2, 0.4], [0, 1, 3]])
def test_bge_m3_weighs_as_compute_score_does(client: TestClient, m3: M3, weights: list[float] | None) -> None:
    options: dict[str, Any] = {"score_weights": weights} if weights else {}
    w = weights or [1.0, 1.0, 1.0]
    expected = []
    for text in TEXTS:
        parts = m3.scores(QUERY, text)
        total = parts["multivector"] * w[2] + parts["sparse"] * w[1] + parts["dense"] * w[0]
        expected.append(total / sum(w))
    answer = ask(client, "m3", QUERY, TEXTS, **options)
    np.testing.assert_allclose(in_order(answer), expected, atol=1e-4)
    np.testing.assert_allclose(
        [in_order(ask(client, "m3", QUERY, [text], **options))[0] for text in TEXTS], expected, atol=1e-4
    )


@pytest.mark.parametrize(
    ("model_options", "field"),
    [
        ({"score_mode": "lexical"}, "score_mode"),
        ({"score_weights": [1, 2]}, "score_weights"),
        ({"score_weights": [0, 0, 0]}, "score_weights"),
        ({"score_weights": [1, -1, 1]}, "score_weights"),
        ({"score_weights": [1, 1, 1], "score_mode": "dense"}, "score_weights"),
        ({"normalize": "sigmoid"}, "normalize"),
    ],
)
def test_wrong_score_options_are_named(client: TestClient, model_options: dict[str, Any], field: str) -> None:
    answer = ask(client, "m3", QUERY, TEXTS, 400, **model_options)
    assert f"$.options.{field}" in answer["detail"]["message"]


def test_an_incomplete_bge_m3_is_refused(tmp_path: Path) -> None:
    directory = make_bge_m3(tmp_path / "half")
    (directory / "colbert_linear.pt").unlink()
    with pytest.raises(ModelLoadFailed, match=r"colbert_linear\.pt is missing"):
        Engine(directory, device=DEVICE)


def test_a_linear_file_with_code_in_it_is_never_run(tmp_path: Path) -> None:
    import pickle

    directory, proof = make_bge_m3(tmp_path / "evil"), tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return (open, (str(proof), "w"))

    (directory / "sparse_linear.pt").write_bytes(pickle.dumps({"weight": Evil()}))
    with pytest.raises(ModelLoadFailed, match="code is never run"):
        Engine(directory, device=DEVICE)
    assert not proof.exists()


# ── SPLADE ──


@pytest.mark.parametrize("name", [*sorted(SPLADES), "bare"])
def test_splade_equals_sparse_encoder(client: TestClient, folders: dict[str, Path], name: str) -> None:
    model = SparseEncoder(str(folders[name]), device="cpu")
    expected = model.encode(TEXTS, convert_to_tensor=True, show_progress_bar=False).to_dense().numpy()
    ours = np.stack([unpacked(item) for item in encode(client, name, TEXTS, ["sparse"])["items"]])
    assert 0.01 < (expected > 0).mean() < 0.99
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("distilbert", {"tie_word_embeddings": False, "activation": "relu"}),
        ("modernbert", {"tie_word_embeddings": False, "decoder_bias": False}),
        ("modernbert", {"classifier_bias": True, "norm_bias": True, "classifier_activation": "silu"}),
        ("roberta", {"tie_word_embeddings": False}),
        ("camembert", {"hidden_act": "relu"}),
    ],
)
def test_splade_on_other_encoders_equals_sparse_encoder(
    tmp_path: Path, family: str, more: dict[str, Any]
) -> None:
    directory = make_library_splade(tmp_path / "made", family, "sum", **more)
    if family == "distilbert":  # the library builds the masked language model of any class
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        write_json(directory / "config.json", config | {"architectures": ["DistilBertModel"]})
    expected = SparseEncoder(str(directory), device="cpu").encode(TEXTS, show_progress_bar=False).to_dense()
    engine = Engine(directory, device=DEVICE, dtype="float32")
    job = engine.tokenize_encode(TEXTS, ("sparse",), engine.max_seq_length)
    for result, theirs in zip(run_job(engine, job), expected.numpy(), strict=True):
        ours = np.zeros_like(theirs)
        ours[result["sparse"].indices] = result["sparse"].values
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-5)


def test_splade_vectors_on_the_device_are_bounded(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vector has the width of the vocabulary, so a batch of many short texts runs in several passes."""
    engine = Engine(folders["max-relu-True"], device=DEVICE, dtype="float32")
    job = engine.tokenize_encode(TEXTS, ("sparse",), engine.max_seq_length)
    at_once = run_job(engine, job)
    monkeypatch.setattr(sparse, "VALUES", 3 * engine.spec.backbone.vocab_size + 1)
    passes: list[int] = []
    launch = engine._forward._launch
    monkeypatch.setattr(engine._forward, "_launch", lambda works: passes.append(len(works)) or launch(works))
    for parted, whole in zip(run_job(engine, job), at_once, strict=True):
        assert parted["sparse"].indices.tolist() == whole["sparse"].indices.tolist()
        np.testing.assert_allclose(parted["sparse"].values, whole["sparse"].values, atol=1e-5)
    assert max(passes) == 3 and sum(passes) == len(job.work)


def test_splade_has_no_other_outputs(client: TestClient) -> None:
    assert "dense" in encode(client, "max-relu-True", TEXTS, ["dense"], 400)["detail"]["message"]
    assert "score" in ask(client, "max-relu-True", QUERY, TEXTS, 400)["detail"]["message"]


def test_sparse_values_are_floats(client: TestClient) -> None:
    message = encode(client, "m3", TEXTS, ["sparse"], 400, output_dtype="int8")["detail"]["message"]
    assert "$.params.output_dtype" in message
    message = encode(client, "m3", TEXTS, ["sparse"], 400, options={"dimensions": 8})["detail"]["message"]
    assert "$.params.options.dimensions" in message
    half = encode(client, "m3", TEXTS, ["sparse"], output_dtype="float16")["items"][4]
    whole = encode(client, "m3", TEXTS, ["sparse"])["items"][4]
    np.testing.assert_allclose(unpacked(half), unpacked(whole), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "pooling", [{"pooling_strategy": "mean"}, {"pooling_strategy": "max", "activation_function": "gelu"}]
)
def test_another_splade_pooling_is_refused(tmp_path: Path, pooling: dict[str, str]) -> None:
    directory = make_splade(tmp_path / "other")
    write_json(directory / "1_SpladePooling" / "config.json", pooling)
    with pytest.raises(ModelLoadFailed, match="SpladePooling"):
        Engine(directory, device=DEVICE)
