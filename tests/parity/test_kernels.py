"""The compiled functions of sie-kernels compute what torch's operators compute, alone, in a batch and permuted."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sie_server.engine import device as devices
from sie_server.engine.engine import Engine
from sie_server.models.layers.compiled import attention, library, products
from sie_server.models.layers.int8.weight import Int8Weight
from sie_server.models.layers.rounding import quantise_weight
from support import kernels
from support.families.every import EVERY
from support.families.int8 import needs_int8, products_compared, results, texts


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kernels.find(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def compiled(path: Path) -> Iterator[None]:
    with kernels.installed(path):
        yield


@pytest.fixture
def with_products(compiled: None) -> None:
    if not products.usable():
        pytest.skip("the products of sie-kernels are for CPUs with AVX512-VNNI and without AMX")


@pytest.fixture
def with_attention(compiled: None) -> None:
    if not attention.usable():
        pytest.skip("the attention of sie-kernels is for CPUs with AVX512-BF16")


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute everything but the products of the layers in fp32, as on a CPU without fast bf16."""
    monkeypatch.setattr(devices, "_cpu_has_fast_bf16", lambda: False)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(1, 1, 1), (5, 3, 63), (6, 64, 64), (7, 65, 65), (48, 100, 16), (49, 129, 200), (131, 384, 130)],
)
def test_products_equal_those_of_onednn(
    path: Path, with_products: None, rows: int, inputs: int, outputs: int, dtype: torch.dtype
) -> None:
    numbers, scales = quantise_weight(random(outputs, inputs))
    ours = Int8Weight(numbers, scales)
    with kernels.installed(None):
        theirs = Int8Weight(numbers, scales)
    x = random(rows, 2 * inputs, seed=1).to(dtype)[:, :inputs]  # rows that do not lie end to end
    bias, residual = random(outputs, seed=2).to(dtype), random(rows, outputs, seed=3).to(dtype)
    near = 2e-5 if dtype == torch.float32 else 2**-7
    for activation in products.NUMBERS:
        for args in ((bias, activation, None), (None, activation, residual)):
            found, expected = ours.product(x, *args), theirs.product(x, *args)
            assert found.dtype == dtype
            torch.testing.assert_close(found, expected, rtol=near, atol=near * (1 + inputs / 64))
    assert torch.equal(ours.plain(dtype), theirs.plain(dtype))
    alone = torch.cat([ours.product(x[i : i + 1], bias, "gelu", None) for i in range(rows)])
    assert torch.equal(alone, ours.product(x, bias, "gelu", None))


def test_a_row_that_is_not_finite_stays_so_and_alone(with_products: None) -> None:
    weight, x = Int8Weight(*quantise_weight(random(16, 32))), random(9, 32)
    for activation in products.NUMBERS:
        expected = weight.product(x, None, activation, None)
        for bad in (float("nan"), float("inf"), -float("inf")):
            y = x.clone()
            y[2, 7] = bad
            found = weight.product(y, None, activation, None)
            assert not found[2].isfinite().any(), activation
            rest = [0, 1, *range(3, 9)]
            assert torch.equal(found[rest], expected[rest])


@pytest.mark.parametrize("dim", [16, 32, 48, 64, 80, 128])
def test_attention_equals_that_of_torch(with_attention: None, dim: int) -> None:
    slots = [16, 32, 48, 80, 144, 272, 16, 64]
    seen = [1, 32, 33, 66, 144, 257, 16, 5]
    starts = np.cumsum([0, *slots[:-1]]).tolist()
    qkv = random(sum(slots), 3, 2, dim).bfloat16()
    found = attention.attention(*qkv.unbind(1), torch.tensor([starts, slots, seen]))
    for start, slot, keys in zip(starts, slots, seen, strict=True):
        part = qkv[start : start + slot]
        q, k, v = part.float().permute(1, 2, 0, 3)
        theirs = scaled_dot_product_attention(q, k[:, :keys], v[:, :keys]).transpose(0, 1).flatten(1)
        torch.testing.assert_close(found[start : start + slot].float(), theirs, rtol=0, atol=0.02)
        alone = attention.attention(*part.unbind(1), torch.tensor([[0], [slot], [keys]]))
        assert torch.equal(alone, found[start : start + slot])


def test_attention_takes_only_tensors_that_it_can_read(with_attention: None) -> None:
    q = random(32, 2, 32).bfloat16()
    assert attention.serves(q, q, q, 16)
    assert not attention.serves(q.float(), q.float(), q.float(), 16)
    assert not attention.serves(q, q[:, :1], q[:, :1], 16)  # grouped queries
    assert not attention.serves(q[:, :, :24], q[:, :, :24], q[:, :, :24], 16)
    assert not attention.serves(q, q, q, attention.LONGEST + 16)
    assert not attention.serves(*(random(32, 32, 2).bfloat16().transpose(1, 2),) * 3, 16)
    with kernels.installed(None):
        assert not attention.serves(q, q, q, 16)


@needs_int8
@pytest.mark.parametrize("name", ["ColBERT, PyLate", "bert", "ettin", "new", "xlm-roberta"])
def test_products_equal_a_plain_form(name: str, tmp_path: Path, with_products: None, exact: None) -> None:
    made, documents = EVERY[name].make(tmp_path), texts()
    engine = Engine(made.served, device="cpu", dtype="int8")
    with products_compared(engine):
        ours = results(engine, documents)
    whole = results(Engine(made.served, device="cpu", dtype="float32"), documents)
    assert 0 < float(np.abs(whole - ours).mean()) < 0.25 * float(np.abs(whole).mean())


@needs_int8
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", ["bert", "new", "xlm-roberta"])
def test_results_do_not_depend_on_the_batch(
    name: str, dtype: str, tmp_path: Path, with_attention: None
) -> None:
    made, documents = EVERY[name].make(tmp_path), texts()
    engine = Engine(made.served, device="cpu", dtype=dtype)
    together = results(engine, documents)
    order = np.random.default_rng(1).permutation(len(documents))
    near = (
        1e-5 if dtype == "int8" else 0.02
    )  # oneDNN's bf16 products round otherwise for other numbers of rows
    found = results(engine, [documents[i] for i in order])
    np.testing.assert_allclose(found, together[order], atol=near, rtol=0)
    np.testing.assert_allclose(results(engine, documents, alone=True), together, atol=near, rtol=0)


# ── a library that cannot be used ──


def library_of(source: str, directory: Path) -> Path:
    (directory / "other.c").write_text(source)
    built = directory / "other.so"
    openmp = ["-fopenmp", "-Wl,--no-as-needed"] if "sie_linear" in source else []
    subprocess.run(["gcc", *openmp, "-shared", "-fPIC", "-o", built, directory / "other.c"], check=True)
    return built


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("int sie_kernels_version(void) { return 99; }", "has version 99, this server needs"),
        ("int other(void) { return 1; }", "cannot be used"),
        ("int sie_kernels_version(void) { return 1; }", "torch has an OpenMP library of its own"),
        (
            "int sie_kernels_version(void) { return 1; }"
            "int sie_linear(void *t) { return 0; } int sie_attention(void *t) { return 0; }",
            "is not used, because",
        ),
        (
            "int sie_kernels_version(void) { return 1; }"
            "int sie_linear(void *t) { return 1; } int sie_attention(void *t) { return 1; }",
            "no memory for the buffers",
        ),
    ],
)
def test_an_unusable_library_is_reported_and_not_used(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, source: str, why: str
) -> None:
    with kernels.installed(path):
        if not attention.usable():
            pytest.skip("the attention of sie-kernels is for CPUs with AVX512-BF16")
    with kernels.installed(library_of(source, tmp_path)):
        assert not attention.usable() and not products.usable()
    assert why in caplog.text


def test_a_package_without_its_library_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with kernels.installed(tmp_path / "missing.so"):
        assert library.library() is None
    assert "cannot be used" in caplog.text
