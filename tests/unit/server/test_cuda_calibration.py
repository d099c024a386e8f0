"""The measurement of a model on a GPU, and the memory that its batches leave for models. The GPU is simulated."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sie_server.engine.calibration import MOST_S, calibrate, calibration, natural_lengths
from sie_server.engine.engine import BATCH_SIZES, Engine
from sie_server.engine.job import Work
from sie_server.serving.lifecycle.budget import MemoryBudget
from support.checkpoints.cross_encoders import make_cross_encoder

SIZES = BATCH_SIZES["cuda"]


class FakeGPU:
    """Times and memory of passes on a simulated card; the passes themselves do nothing."""

    def __init__(
        self, patch: pytest.MonkeyPatch, engine: Engine, *, us_per_token: float, launch_s: float, fits: int
    ) -> None:
        self.passes: list[list[int]] = []  # lengths
        self.us_per_token, self.launch_s, self.fits = us_per_token, launch_s, fits
        self.now = 0.0
        self._peak = 0
        patch.setattr(engine, "device", torch.device("cuda"))
        patch.setattr(Engine, "run", lambda _, works: self._run(works))
        for name, value in {
            "memory_allocated": lambda *_: 1_000_000,
            "reset_peak_memory_stats": lambda *_: setattr(self, "_peak", 0),
            "max_memory_allocated": lambda *_: 1_000_000 + self._peak,
            "Event": lambda **_: FakeEvent(self),
            "empty_cache": lambda: None,
        }.items():
            patch.setattr(torch.cuda, name, value)

    def _run(self, works: list[Work]) -> list[Any]:
        lengths = [len(work.tokens) for work in works]
        first = sum(lengths) not in map(sum, self.passes)
        self.passes.append(lengths)
        if sum(lengths) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.now += self.launch_s + sum(lengths) * self.us_per_token / 1e6 + (5.0 if first else 0.0)
        self._peak = 100 * sum(lengths)
        return [0.0] * len(works)


class FakeEvent:
    def __init__(self, gpu: FakeGPU) -> None:
        self._gpu, self.at = gpu, 0.0

    def record(self) -> None:
        self.at = self._gpu.now

    def synchronize(self) -> None:
        """The simulated card has always finished."""

    def elapsed_time(self, end: FakeEvent) -> float:
        return (end.at - self.at) * 1e3


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    directory = make_cross_encoder(tmp_path_factory.mktemp("calibration") / "model", "bert")
    return Engine(directory, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("us_per_token", "launch_s", "fits", "chosen"),
    [
        (0.2, 0.010, 10**9, SIZES[3]),  # a fast card needs large batches
        (0.2, 0.0, 10**9, SIZES[0]),  # without a cost of launches the smallest is as fast
        (1.2, 0.003, 10**9, SIZES[2]),  # the largest would take more than 25 ms
        (50.0, 0.010, 10**9, SIZES[0]),  # a slow card: every size takes too long
        (0.2, 0.010, SIZES[2], SIZES[2]),  # the largest does not fit
    ],
)
def test_the_batch_size_on_a_gpu(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    us_per_token: float,
    launch_s: float,
    fits: int,
    chosen: int,
) -> None:
    gpu = FakeGPU(monkeypatch, engine, us_per_token=us_per_token, launch_s=launch_s, fits=fits)
    calibrate(engine, 0.5)
    assert engine.batch_tokens == chosen
    tokens = max(sum(p) for p in gpu.passes if sum(p) <= chosen)
    assert engine.activation_bytes == 100 * tokens  # the peak of the chosen size, not of a larger one
    expected = tokens / (launch_s + tokens * us_per_token / 1e6)
    assert engine.tokens_per_second == pytest.approx(expected, rel=0.05)  # the slow first passes do not count
    assert chosen == SIZES[0] or launch_s + chosen * us_per_token / 1e6 <= MOST_S


def test_passes_on_a_gpu_have_natural_lengths(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGPU(monkeypatch, engine, us_per_token=0.2, launch_s=0.01, fits=10**9)
    steps = list(calibration(engine, 0.2))
    assert len(steps) >= len(SIZES)
    for lengths in gpu.passes:
        assert len(set(lengths)) > 10 and max(lengths) <= engine.max_seq_length
        assert lengths == sorted(lengths, reverse=True)
    assert {size for size in SIZES if any(size * 0.9 < sum(p) <= size for p in gpu.passes)} == set(SIZES)


@pytest.mark.parametrize("longest", [1, 8, 100, 512, 8192])
def test_natural_lengths_fit_the_model(longest: int) -> None:
    lengths = natural_lengths(longest)
    assert all(1 <= length <= longest for length in lengths)
    if longest >= 512:
        assert sorted(lengths)[len(lengths) // 2] == pytest.approx(97, abs=3)


def test_a_configured_size_is_measured_on_a_gpu(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGPU(monkeypatch, engine, us_per_token=0.2, launch_s=0.01, fits=10**9)
    list(calibration(engine, 0.1, size=2000))
    assert engine.batch_tokens == 2000
    assert all(1800 < sum(lengths) <= 2000 for lengths in gpu.passes)
    assert engine.activation_bytes == 100 * max(map(sum, gpu.passes))


def test_the_smallest_batch_must_fit(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGPU(monkeypatch, engine, us_per_token=0.2, launch_s=0.01, fits=100)
    with pytest.raises(torch.OutOfMemoryError):
        calibrate(engine)


def budget_with(total: int, device: int | None, *activations: int) -> MemoryBudget:
    engines = [SimpleNamespace(engine=SimpleNamespace(activation_bytes=n)) for n in activations]
    table: Any = SimpleNamespace(
        all=lambda: [SimpleNamespace(versions=[e, SimpleNamespace(engine=None)]) for e in engines]
    )
    metrics: Any = None
    return MemoryBudget(table, total, 1.0, metrics, device)


@pytest.mark.parametrize(
    ("total", "device", "activations", "left"),
    [
        (800, 1000, (), 800),
        (800, 1000, (150, 100), 800),  # the rest of the card is enough for the largest batch
        (800, 1000, (100, 350), 650),  # one batch runs at a time, so the largest counts
        (800, 1000, (2000,), 0),
        (5000, 1000, (0,), 1000),  # more than the card has
        (800, None, (350,), 800),  # on a CPU
    ],
)
def test_batches_of_the_largest_need_are_kept_free(
    total: int, device: int | None, activations: tuple[int, ...], left: int
) -> None:
    assert budget_with(total, device, *activations).total_bytes == left


def test_the_error_names_what_batches_take() -> None:
    mib = 2**20
    budget = budget_with(800 * mib, 1000 * mib, 350 * mib)
    budget._table.all = lambda all=budget._table.all: [  # type: ignore[method-assign,misc]
        SimpleNamespace(memory_bytes=0, versions=slot.versions) for slot in all()
    ]
    error = budget.exhausted("model 'a'", 700 * mib, 1.0)
    assert "700.0 MiB of 650.0 MiB (memory_budget_mb less 150.0 MiB that batches take)" in error.message
