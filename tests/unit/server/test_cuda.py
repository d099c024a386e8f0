"""CUDA cards that are missing, old or lost. No card is needed: `torch.cuda` is replaced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from sie_server.cli.commands import cli
from sie_server.engine import device
from sie_server.engine.device import device_lost, math_threads, pick_device, pick_dtype, usable_cores
from sie_server.engine.engine import Engine
from sie_server.engine.job import Job, Work, build_job
from sie_server.engine.machine import cuda
from sie_server.errors import ConfigError, ModelLoadFailed, QueueFull, SIEError, out_of_memory
from sie_server.models.batch import Tokens
from sie_server.serving.device.health import DeviceHealth
from sie_server.serving.device.isolation import run_isolated
from sie_server.serving.device.worker import DeviceWorker
from sie_server.serving.loading.probe import check_device
from sie_server.serving.metrics import Metrics, RequestTiming
from support.waiting import until

OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver.\nmore"
)


class Card:
    """Replaces `torch.cuda` by a card, or by none, with the error of `torch.cuda.init`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.cudnn: list[bool] = []
        patch.setattr(torch.backends.cuda, "enable_cudnn_sdp", self.cudnn.append)
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        self.missing()

    def present(self, capability: tuple[int, int], built: tuple[str, ...] = ("sm_75", "sm_90a")) -> None:
        self._set(True, None, capability, built)

    def missing(self, error: Exception | None = None) -> None:
        self._set(False, error, (0, 0), ())

    def _set(
        self, seen: bool, error: Exception | None, capability: tuple[int, int], built: tuple[str, ...]
    ) -> None:
        def init() -> None:
            if error:
                raise error

        for name, value in {
            "is_available": lambda: seen,
            "init": init,
            "get_device_capability": lambda *_: capability,
            "get_device_name": lambda *_: "Card X",
            "get_arch_list": lambda: list(built),
        }.items():
            self._patch.setattr(torch.cuda, name, value)
        self._patch.setattr(torch.backends.cuda, "is_built", lambda: True)
        cuda.prepare_cuda.cache_clear()
        device._unused_card.cache_clear()


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    yield Card(monkeypatch)
    cuda.prepare_cuda.cache_clear()
    device._unused_card.cache_clear()


def test_cuda_without_a_card_names_the_reason_and_the_next_step(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ValueError, match=r"'cuda' was requested, but torch sees no CUDA GPU; use --device cpu"
    ):
        pick_device("cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ValueError, match=r"no CUDA GPU \(CUDA_VISIBLE_DEVICES is ''\)"):
        pick_device("cuda")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    card.missing(RuntimeError(OLD_DRIVER))
    with pytest.raises(
        ValueError,
        match=r"The NVIDIA driver on your system is too old .*; use --device cpu",
    ):
        pick_device("cuda")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    with pytest.raises(ValueError, match="built without CUDA; install a build with CUDA"):
        pick_device("cuda")
    assert pick_device("auto").type == "cpu"


@pytest.mark.parametrize("flags", [[], ["--threads", "2"]])
@pytest.mark.parametrize("command", [["serve"], ["score", "--query", "rain", "-"]])
def test_commands_without_a_card_end_with_its_reason(
    card: Card, command: list[str], flags: list[str]
) -> None:
    done = CliRunner().invoke(cli, [*command, "--device", "cuda", *flags], input="rain falls\n")
    assert isinstance(done.exception, ConfigError)  # the program prints its message
    assert str(done.exception).startswith("device 'cuda' was requested, but torch sees no CUDA GPU")


def test_a_load_without_a_card_names_the_reason(card: Card, tmp_path: Path) -> None:
    card.missing(RuntimeError(OLD_DRIVER))
    with pytest.raises(ModelLoadFailed, match="driver on your system is too old"):
        Engine(tmp_path, device="cuda")


def test_a_card_that_torch_has_no_kernels_for_is_refused_or_left_unused(
    card: Card, caplog: pytest.LogCaptureFixture
) -> None:
    card.present((6, 1))
    with pytest.raises(ValueError, match=r"Card X has compute capability 6.1, .* needs 7.5 or later"):
        pick_device("cuda")
    with caplog.at_level(logging.WARNING):
        assert pick_device("auto").type == "cpu" and pick_device("auto").type == "cpu"
    assert caplog.text.count("models run on the CPU: Card X") == 1


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ((6, 0), torch.float32),
        ((7, 0), torch.float16),
        ((7, 5), torch.float16),
        ((8, 0), torch.bfloat16),
        ((8, 9), torch.bfloat16),
        ((9, 0), torch.bfloat16),
        ((12, 0), torch.bfloat16),
    ],
)
def test_the_dtype_is_the_one_that_the_card_multiplies_fast(
    card: Card, capability: tuple[int, int], dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    card.present(capability, ("sm_60", "sm_90", "compute_120"))
    with caplog.at_level(logging.WARNING):
        chosen = pick_device("cuda")
    assert pick_dtype("auto", chosen) == dtype
    assert pick_dtype("float32", chosen) == torch.float32
    assert ("no FlashAttention, which needs 8.0" in caplog.text) == (capability < (8, 0))


def test_a_card_gets_one_math_thread_and_no_attention_of_cudnn(card: Card) -> None:
    assert math_threads(0, "auto") == usable_cores() and card.cudnn == []
    card.present((9, 0))
    assert math_threads(0, "auto") == 1 and math_threads(0, "cuda") == 1
    assert math_threads(3, "cuda") == 3 and math_threads(0, "cpu") == usable_cores()
    assert card.cudnn == [False]


@pytest.mark.parametrize(
    ("error", "lost", "memory"),
    [
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), True, False),
        (torch.AcceleratorError("CUDA error: an error of next year"), True, False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True, False),
        (RuntimeError("CUDA error: unspecified launch failure"), True, False),
        (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might"), False, True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), False, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), False, True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b"), False, False),
        (ValueError("CUDA error: device-side assert triggered, says a text"), False, False),
    ],
)
def test_errors_of_the_card_are_told_apart(error: Exception, lost: bool, memory: bool) -> None:
    assert (device_lost(error), out_of_memory(error)) == (lost, memory)


class SmallCard:
    """An engine on a card with memory for `fits` sequences; returns their lengths."""

    batch_tokens, tokens_per_second, overlap = 10_000, 1e6, 0

    def __init__(self, fits: int, error: Exception) -> None:
        self.fits, self.error, self.sizes = fits, error, list[int]()

    def run(self, works: list[Work]) -> list[Any]:
        self.sizes.append(len(works))
        if len(works) > self.fits:
            raise self.error
        return [len(work.tokens) for work in works]


def job_of(*lengths: int) -> Job:
    sequences = [Tokens(torch.full((n,), n, dtype=torch.int32).numpy(), n) for n in lengths]
    return build_job(("score",), sequences, [False] * len(lengths))


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), torch.AcceleratorError("CUDA error: out of memory")],
)
def test_a_batch_that_does_not_fit_the_card_is_halved_and_its_cache_released(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[None] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append(None))
    engine: Any = SmallCard(2, error)
    job = job_of(*range(1, 8))
    assert run_isolated(engine, job.work) == {}
    assert job.results == list(range(1, 8))
    assert engine.sizes == [7, 3, 1, 2, 4, 2, 2] and len(released) == 3
    engine = SmallCard(0, error)
    single = job_of(5)
    [(_, failure)] = run_isolated(engine, single.work).items()
    assert failure.code == "RESOURCE_EXHAUSTED" and engine.sizes == [1]


class LostCard(SmallCard):
    def __init__(self) -> None:
        super().__init__(0, torch.AcceleratorError("CUDA error: device-side assert triggered\nmore"))


async def test_a_lost_card_fails_all_requests_and_ends_the_server() -> None:
    deaths: list[SIEError] = []
    engine: Any = LostCard()
    worker = DeviceWorker(1000, 1, Metrics(), deaths.append)
    async with asyncio.timeout(20):
        runs = [worker.run(engine, [job_of(5)], RequestTiming()) for _ in range(3)]
        failures = await asyncio.gather(*runs, return_exceptions=True)
        assert all(isinstance(failure, QueueFull) for failure in failures)
        assert "(DeviceLost: CUDA error: device-side assert triggered) and the server" in str(failures[0])
        assert worker.health.dead
        await until(lambda: deaths)
    await asyncio.to_thread(worker.close)


async def test_a_card_that_is_lost_in_a_measurement_ends_the_server_too() -> None:
    deaths: list[SIEError] = []
    engine: Any = LostCard()
    worker = DeviceWorker(1000, 1, Metrics(), deaths.append)
    async with asyncio.timeout(20):
        with pytest.raises(QueueFull, match="device-side assert"):
            await worker.call(lambda: engine.run(job_of(5).work))
        await until(lambda: deaths)
    await asyncio.to_thread(worker.close)


def test_a_self_test_on_a_lost_card_is_no_failure_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    class Texts(LostCard):
        max_seq_length = 8
        spec = type("Spec", (), {"outputs": ("score",)})
        trouble = None

        def tokenize_plain(self, texts: Any) -> Job:
            return job_of(3)

    engine: Any = Texts()
    health = DeviceHealth()
    for _ in range(3):
        health.batch_ended(engine, SIEError("failed"))
    with pytest.raises(BaseException, match="device-side assert") as caught:
        health.test(check_device)
    assert type(caught.value).__name__ == "DeviceLost"
