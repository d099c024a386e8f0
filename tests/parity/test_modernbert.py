"""ModernBERT beyond test_every_family.py: long sequences, old and new configuration fields, the attention window."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts
from sie_server.errors import ModelLoadFailed
from sie_server.models.batch import PackedBatch, Tokens
from sie_server.models.layers.attention import local
from sie_server.models.layers.attention.local import LocalAttention
from sie_server.models.packing import pack
from support.checkpoints.cross_encoders import make_cross_encoder, random_text
from support.device import DEVICE
from support.requests.jobs import read_pairs, run_job

LIMIT = 640  # these checkpoints attend to 8 tokens on either side, in blocks of 32
TOLERANCE = 1e-4


def logits(engine: Engine, query: str, documents: list[str]) -> list[float]:
    job = engine.tokenize_score(ScoreTexts(query, documents, LIMIT))
    return run_job(engine, job)


def reference(directory: Path, query: str, documents: list[str]) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    encoded = read_pairs(tokenizer, query, documents, LIMIT)
    with torch.inference_mode():
        return model(**encoded).logits[:, 0]


def documents() -> list[str]:
    """Return documents on both sides of every boundary: window, block, the switch to blocks, the limit."""
    rng = random.Random(4)
    return [random_text(rng, n) for n in (0, 1, 5, 9, 20, 25, 50, 60, 61, 62, 63, 64, 90, 150, 200, 260, 900)]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("layers", [3, 4])  # the last layer is local or global
def test_long_sequences_equal_transformers(tmp_path: Path, pooling: str, layers: int) -> None:
    directory = make_cross_encoder(
        tmp_path,
        "modernbert",
        max_length=LIMIT,
        num_hidden_layers=layers,
        classifier_pooling=pooling,
        classifier_activation="silu",
    )
    engine = Engine(directory, device=DEVICE, dtype="float32")
    expected = reference(directory, "rain data", documents())
    ours = logits(engine, "rain data", documents())
    assert expected.std() > 0.05
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=0)
    alone = [logits(engine, "rain data", [document])[0] for document in documents()]
    np.testing.assert_allclose(alone, ours, atol=TOLERANCE, rtol=0)


OLDER = {"global_attn_every_n_layers": 2, "global_rope_theta": 3000.0, "local_rope_theta": 70.0}


def test_older_configuration_names_mean_the_same(tmp_path: Path) -> None:
    """Configurations from before transformers 5 have neither `layer_types` nor `rope_parameters`."""
    directory = make_cross_encoder(tmp_path, "modernbert", max_length=LIMIT, num_hidden_layers=4)
    path = directory / "config.json"
    newer = json.loads(path.read_text())
    default = logits(Engine(directory, device=DEVICE, dtype="float32"), "rain", documents())
    older = {k: v for k, v in newer.items() if k not in ("layer_types", "rope_parameters")} | OLDER
    path.write_text(json.dumps(older))
    engine = Engine(directory, device=DEVICE, dtype="float32")
    ours = logits(engine, "rain", documents())
    np.testing.assert_allclose(ours, reference(directory, "rain", documents()), atol=TOLERANCE, rtol=0)
    assert np.abs(np.array(ours) - default).max() > 0.01  # the fields take effect
    path.write_text(json.dumps(newer | {"rope_parameters": rope(3000.0, 70.0), "layer_types": LAYERS}))
    np.testing.assert_allclose(
        logits(Engine(directory, device=DEVICE, dtype="float32"), "rain", documents()), ours, atol=1e-6
    )


LAYERS = ["full_attention", "sliding_attention"] * 2


def rope(full: float, sliding: float, kind: str = "default") -> dict[str, Any]:
    return {
        "full_attention": {"rope_type": kind, "rope_theta": full},
        "sliding_attention": {"rope_type": kind, "rope_theta": sliding},
    }


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rope_parameters": rope(1e4, 1e4, "yarn")}, "rope_type 'yarn'"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["full_attention", "linear", "full_attention"]}, "linear"),
        ({"classifier_pooling": "max"}, "classifier_pooling 'max'"),
        ({"hidden_activation": "snake"}, "hidden_activation 'snake'"),
        ({"mlp_bias": True}, "mlp.Wi.bias"),
        ({"num_hidden_layers": 2, "layer_types": None}, "layers.2"),
    ],
)
def test_unsupported_settings_are_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    directory = make_cross_encoder(tmp_path, "modernbert")
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelLoadFailed, match=named):
        Engine(directory, device=DEVICE, dtype="float32")


LENGTHS = [1, 5, 16, 17, 40, 96, 97, 100, 128, 250, 256, 511]


def packed(align: int, lengths: list[int]) -> PackedBatch:
    sequences = [Tokens(np.zeros(n, np.int32), n) for n in lengths]
    return pack(sequences, pad_id=0, align=align, device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("align", [1, 16])
@pytest.mark.parametrize("reach", [1, 8, 64])
@pytest.mark.parametrize("readout", ["first", "last", "all"])
def test_the_window_equals_one_sequence_at_a_time(align: int, reach: int, readout: Any) -> None:
    torch.manual_seed(0)
    batch = packed(align, LENGTHS)
    q, k, v = torch.randn(3, batch.rows, 2, 8).unbind(0)
    asking = batch.rows_of(readout)
    attend = LocalAttention(batch, reach, torch.float32)
    ours = attend(q if asking is None else q[asking], k, v, readout)
    assert not ours.isnan().any()  # also in unused rows: NaN times a weight of 0 is still NaN
    for place, (start, length) in enumerate(zip(batch.starts, batch.lengths, strict=True)):
        rows = slice(start, start + length)
        band = (torch.arange(length)[:, None] - torch.arange(length)).abs() <= reach
        alone = [x[rows].transpose(0, 1)[None] for x in (q, k, v)]
        expected = scaled_dot_product_attention(*alone, attn_mask=band)[0].transpose(0, 1).flatten(1)
        mine = ours[rows] if asking is None else ours[place]
        wanted = {"first": expected[0], "last": expected[-1], "all": expected}[readout]
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-5)


def test_the_window_is_linear_in_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doubling the length of a long sequence doubles its query-key products."""
    products: list[int] = []

    def counting(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: Any) -> torch.Tensor:
        products.append(q.shape[0] * q.shape[2] * k.shape[2])
        return scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)

    monkeypatch.setattr(local, "scaled_dot_product_attention", counting)
    for length in (2048, 4096):
        batch = packed(16, [length])
        q = torch.zeros(batch.rows, 1, 4)
        LocalAttention(batch, 64, torch.float32)(q, q, q)
    assert products[1] == 2 * products[0]
    assert products[0] <= 2048 * 256
