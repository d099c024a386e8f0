"""The int8 format: its results equal those of a plain form of the same rounding, and do not depend on the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sie_server.engine import device as devices
from sie_server.engine.document_cache import DocumentCache, ModelDocuments
from sie_server.engine.engine import Engine
from sie_server.engine.job import QUERY, ScoreTexts
from sie_server.engine.storage.footprint import needed_bytes
from sie_server.errors import ModelLoadFailed
from sie_server.models.layers.int8 import machine
from sie_server.models.layers.int8.products import product
from sie_server.models.layers.int8.weight import Int8Weight
from sie_server.models.layers.rounding import quantise_rows, quantise_weight
from support.checkpoints.cross_encoders import make_cross_encoder
from support.families.adapters import make_adapter, write_adapter
from support.families.every import EVERY
from support.families.int8 import QUERY_TEXT, needs_int8, products_compared, results, texts

CPU = torch.device("cpu")
NAMES = (
    "ColBERT, PyLate",
    "JinaBERT reranker-v1",
    "SPLADE",
    "albert",
    "bert",
    "embedder mpnet",
    "ettin",
    "modernbert",
    "new",
    "xlm-roberta",
    "xlm-roberta-flash-rotary",
)
EMBEDDED = Path(devices.__file__).parents[1] / "embedded" / "mini-en"


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute everything but the products of the layers in fp32, as on a CPU without fast bf16."""
    monkeypatch.setattr(devices, "_cpu_has_fast_bf16", lambda: False)


@needs_int8
@pytest.mark.parametrize("name", NAMES)
def test_products_equal_a_plain_form(name: str, tmp_path: Path, exact: None) -> None:
    made, documents = EVERY[name].make(tmp_path), texts()
    engine, exactly = (Engine(made.served, device="cpu", dtype=dtype) for dtype in ("int8", "float32"))
    for target, other in ((t, exactly._targets[name]) for name, t in engine._targets.items()):
        if getattr(target.layer, "integers", None):
            difference = target.layer.plain_weight() - other.layer.plain_weight()
            assert (difference.abs() < 0.501 * target.layer.rounding()).all()
    with products_compared(engine):
        ours = results(engine, documents)
    whole = results(exactly, documents)
    assert 0 < float(np.abs(whole - ours).mean()) < 0.25 * float(np.abs(whole).mean())


@needs_int8
@pytest.mark.parametrize("name", NAMES)
def test_results_do_not_depend_on_the_batch(name: str, tmp_path: Path) -> None:
    made, documents = EVERY[name].make(tmp_path), texts()
    engine = Engine(made.served, device="cpu", dtype="int8")
    together = results(engine, documents)
    order = np.random.default_rng(1).permutation(len(documents))
    assert np.array_equal(results(engine, [documents[i] for i in order]), together[order])
    # the head multiplies another number of rows at a time
    np.testing.assert_allclose(results(engine, documents, alone=True), together, atol=1e-5, rtol=0)


@needs_int8
def test_an_adapter_applies_beside_the_integers(tmp_path: Path, exact: None) -> None:
    directory = make_cross_encoder(tmp_path / "model", "bert", max_length=96)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    path = make_adapter(base, tmp_path / "adapter", seed=1, target_modules="all-linear", r=4)
    engine, documents = Engine(directory, device="cpu", dtype="int8"), texts()
    with products_compared(engine):
        ours = results(engine, documents, engine.attach(path))
    exactly = Engine(directory, device="cpu", dtype="float32")
    expected = results(exactly, documents, exactly.attach(path))
    effect = float(np.abs(expected - results(exactly, documents)).mean())
    assert effect > 0.5
    assert float(np.abs(ours - expected).mean()) < 0.2 * effect  # only the base is rounded
    expected = [ours, results(engine, documents)]
    limited = ScoreTexts(QUERY_TEXT, documents, 60)
    jobs = [engine.tokenize_score(limited, adapter=each) for each in (engine.attach(path), None)]
    works = [(place, work) for place, job in enumerate(jobs) for work in job.work]
    with products_compared(engine):
        mixed = engine.run([work for _, work in works])
    alone = [expected[place][work.index] for place, work in works]
    differences = np.abs(np.subtract(mixed, alone))
    # the adapter's sums have other last bits in another batch, and an input halfway between two integers then rounds
    # to the other one
    assert np.mean(differences < 1e-4) > 0.9 and differences.max() < 0.1 * effect


@needs_int8
def test_the_base_weights_of_an_adapter_may_differ_by_the_rounding(tmp_path: Path) -> None:
    directory = make_cross_encoder(tmp_path / "model", "bert", max_length=96)
    module = "bert.encoder.layer.0.output.dense"
    weight = load_file(directory / "model.safetensors")[f"{module}.weight"]
    pair = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
    engine, path = Engine(directory, device="cpu", dtype="int8"), tmp_path / "adapter"
    file = write_adapter(path, 2, 2, {module: pair}) / "adapter_model.safetensors"
    tensors, name = load_file(file), f"base_model.model.{module}.base_layer.weight"
    save_file(tensors | {name: weight.clone()}, file)
    engine.attach(path)
    weight[3, 5] += float(weight.abs().max())
    save_file(tensors | {name: weight}, file)
    with pytest.raises(ModelLoadFailed, match="trained on another base"):
        engine.attach(path)


@needs_int8
def test_cached_documents_score_as_new_ones(tmp_path: Path) -> None:
    documents = ModelDocuments(DocumentCache(2**28), "mini-en", None)
    engine = Engine(EMBEDDED, device="cpu", dtype="int8", documents=documents)
    found = [scores(engine, texts(8)) for _ in range(2)]
    plain = scores(Engine(EMBEDDED, device="cpu", dtype="float32"), texts(8))
    np.testing.assert_allclose(found[1], found[0], atol=1e-6, rtol=0)
    np.testing.assert_allclose(found[0], plain, atol=0.03, rtol=0)
    assert found[0] != plain


def scores(engine: Engine, documents: list[str]) -> list[float]:
    job = engine.tokenize_score(ScoreTexts(QUERY_TEXT, documents, 60))
    for work, result in zip(job.work, engine.run(job.work), strict=True):
        if work.index != QUERY:
            job.put(work.index, result)
    if job.known:
        engine.score_known(job)
    return list(job.results)


@needs_int8
@pytest.mark.parametrize("name", ["albert", "new", "modernbert", "xlm-roberta"])
def test_the_memory_is_known_before_the_load(name: str, tmp_path: Path) -> None:
    directory = EVERY[name].make(tmp_path).served
    sizes = {
        dtype: (
            needed_bytes(directory, device="cpu", dtype=dtype, template=None),
            Engine(directory, device="cpu", dtype=dtype).memory_bytes,
        )
        for dtype in ("auto", "int8")
    }
    # unused tensors and heads in fp32 make the estimate differ, alike in both formats
    saved, expected = (sizes["auto"][i] - sizes["int8"][i] for i in (1, 0))
    assert saved == expected > 0


@needs_int8
@pytest.mark.parametrize(
    ("name", "why"),
    [("decoder qwen3", "is a decoder or a hybrid"), ("convbert", "runs through transformers")],
)
def test_other_families_are_refused(name: str, why: str, tmp_path: Path) -> None:
    made = EVERY[name].make(tmp_path)
    with pytest.raises(ModelLoadFailed, match=why) as caught:
        Engine(made.served, device="cpu", dtype="int8", template=made.template)
    assert "--dtype auto" in str(caught.value)


def test_other_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is for CPUs, but the device is 'cuda'" in str(machine.problem(torch.device("cuda")))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_vnni": False})
    with pytest.raises(ModelLoadFailed, match=r"needs a CPU with one of .*avx512_vnni, avx_vnni, amx_int8"):
        Engine(EMBEDDED, device="cpu", dtype="int8")


@needs_int8
@pytest.mark.parametrize("fault", ["wrong", "missing", "raises"])
def test_operators_that_compute_otherwise_are_refused(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    if fault == "missing":
        monkeypatch.setattr(machine, "OPERATORS", ("qlinear_prepack", "qlinear_none"))
    else:
        faults = {"wrong": lambda *a: product(*a) * 1.01, "raises": lambda *a: [][0]}
        monkeypatch.setattr(machine, "product", faults[fault])
    machine.differences.cache_clear()
    try:
        assert "--dtype auto until then" in str(machine.problem(CPU))
    finally:
        machine.differences.cache_clear()


def test_rows_are_rounded_each_with_its_own_scale() -> None:
    x = torch.tensor(
        [[1.0, -1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [1e30, 1.0, -2e30, 0.0], [1e-20, 0, 0, -1e-20]]
    )
    values, heights = quantise_rows(x)
    assert values.tolist()[:3] == [[255, 1, 192, 128], [128, 128, 128, 128], [192, 128, 1, 128]]
    assert values.tolist()[3] == [255, 128, 128, 1]
    back = (values.float() - 128) * heights
    assert ((back - x).abs() <= heights / 2 * 1.001).all()


@needs_int8
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_stays_so_and_alone(bad: float) -> None:
    weight, x = torch.randn(16, 32), torch.randn(6, 32)
    layer = Int8Weight(*quantise_weight(weight))
    expected = layer.product(x, None, None, None)
    x[2, 7] = bad
    found = layer.product(x, None, None, None)
    assert not found[2].isfinite().any()
    assert torch.equal(found[[0, 1, 3, 4, 5]], expected[[0, 1, 3, 4, 5]])
