"""A pass copies to the device once and never waits for it: neither the model nor its reader does.

In the layout of a GPU, with tensors that have no values. Where a value is needed on the host, torch raises an error.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sie_server.catalog import EMBEDDED
from sie_server.engine.engine import Engine
from sie_server.engine.job import Job, ScoreTexts, Work
from sie_server.models.layers.attention import varlen
from sie_server.models.spec import CausalSpec
from sie_server.models.staging import Staging
from support.checkpoints.colbert import make_pylate
from support.checkpoints.cross_encoders import make_cross_encoder
from support.checkpoints.decoders import make_decoder
from support.checkpoints.encoders import make_bge_m3, make_splade
from support.checkpoints.library import make_library_classifier
from support.checkpoints.listwise import make_listwise
from support.families.every import EVERY
from support.layout import gpu_layout
from support.nowhere import META, Copies, move

QUERY, DOCUMENTS = (
    "how do stars burn",
    ["", "stars burn hydrogen", "rain " * 30, "light", "stars burn hydrogen"],
)
LIMIT, PROMPT_LIMIT = 60, 300


def scored(engine: Engine) -> Job:
    prompted = isinstance(engine.spec.head, CausalSpec)
    return engine.tokenize_score(ScoreTexts(QUERY, DOCUMENTS, PROMPT_LIMIT if prompted else LIMIT))


def matched(engine: Engine) -> Job:
    job = scored(engine)
    job.outputs = ("token_scores",)
    return job


def encoded(*outputs: str) -> Callable[[Engine], Job]:
    return lambda engine: engine.tokenize_encode(DOCUMENTS, outputs, LIMIT)


def of(name: str) -> Callable[[Path], Path]:
    return lambda directory: EVERY[name].make(directory).served


CASES: dict[str, tuple[Callable[[Path], Path], tuple[Callable[[Engine], Job], ...], dict[str, Any]]] = {
    "BERT": (lambda path: make_cross_encoder(path / "model", "bert", max_length=96), (scored,), {}),
    "ModernBERT": (
        lambda path: make_cross_encoder(path / "model", "modernbert", max_length=96),
        (scored,),
        {},
    ),
    "ettin": (of("ettin"), (scored,), {}),
    "decoder": (
        lambda path: make_decoder(path / "model", "qwen3"),
        (scored,),
        {"template": "qwen3-reranker"},
    ),
    "Gemma": (
        lambda path: make_decoder(path / "model", "gemma"),
        (scored,),
        {"template": "bge-reranker-gemma"},
    ),
    "several labels": (
        lambda path: make_library_classifier(path / "model", "distilbert", labels=3),
        (scored,),
        {"label": 1},
    ),
    "ColBERT": (
        lambda path: make_pylate(path / "model", "bert"),
        (scored, matched, encoded("multivector")),
        {},
    ),
    "ColBERT, ModernBERT": (of("ColBERT, ModernBERT"), (scored, matched), {}),
    "ColBERT, LFM2": (of("ColBERT, LFM2"), (scored,), {}),
    "bge-m3": (
        lambda path: make_bge_m3(path / "model"),
        (scored, encoded("dense", "sparse", "multivector")),
        {},
    ),
    "SPLADE": (lambda path: make_splade(path / "model"), (encoded("sparse"),), {}),
    "embedder": (of("embedder"), (encoded("dense"),), {}),
    "embedder, last token": (of("embedder qwen3"), (encoded("dense"),), {}),
    "listwise": (lambda path: make_listwise(path / "model", "v3"), (scored,), {}),
    "embedded": (lambda path: EMBEDDED / "mini-en", (scored, matched, encoded("dense", "multivector")), {}),
}


@pytest.fixture(scope="module", params=sorted(CASES))
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Engine, tuple[Callable[[Engine], Job], ...]]:
    make, jobs, settings = CASES[request.param]
    with gpu_layout():
        engine = Engine(make(tmp_path_factory.mktemp("model")), device="cpu", dtype="float32", **settings)
    move(engine)
    # as on a GPU, in ordinary memory; without values no copy is waited for
    engine._forward._staging = Staging(META, lambda size: torch.empty(size, dtype=torch.int32), Never)
    return engine, jobs


class Never:
    """An event that nothing records or waits for."""

    def record(self) -> None: ...
    def synchronize(self) -> None: ...


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the plain function, which reads the boundaries, by one that returns what a kernel returns."""

    def nothing(query: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.empty_like(query)

    monkeypatch.setattr(varlen, "reference", nothing)


@torch.inference_mode()
def test_a_pass_copies_once_and_never_waits(case: tuple[Engine, tuple[Callable[[Engine], Job], ...]]) -> None:
    engine, makes = case
    forward = engine._forward
    assert forward.attention.kind == "varlen"
    works: list[Work] = []
    for make in makes:
        # several requests in one pass, each with its query before its documents
        works += make(engine).work
    with Copies() as copies:
        pending = forward._launch(works)
    assert copies.found == {"copy to the device": 1}
    assert pending.tensors and {tensor.device for tensor in pending.tensors} == {META}


def test_reading_a_value_would_be_found() -> None:
    """The check itself: values on this device can be neither read nor selected by a mask."""
    values = torch.ones(3).to(META)
    for read in (
        lambda: values.sum().item(),
        lambda: values[values > 0],
        lambda: bool(values[0] > 0),
        lambda: values.tolist(),
        lambda: torch.nonzero(values),
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()
    with Copies() as copies:
        torch.arange(3).to(META)
        torch.zeros(2, device=META).copy_(torch.ones(2))
        torch.zeros(2, device=META)[torch.tensor([0, 1])]
        torch.tensor([0, 1], device=META)
        torch.zeros(2, device=META)[1:] + 1
    assert copies.found == {"copy to the device": 4}
