"""What a model takes: known from headers before it loads, counted while it loads, its own afterwards."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sie_server.engine.calibration import calibration
from sie_server.engine.engine import BATCH_SIZES, Engine
from sie_server.engine.job import ScoreTexts, Work
from sie_server.engine.storage.footprint import automatic_budget, needed_bytes
from sie_server.engine.storage.tally import Tally
from support.checkpoints.colbert import make_pylate
from support.checkpoints.cross_encoders import make_cross_encoder
from support.device import DEVICE

MAKE: dict[str, Callable[[Path], Path]] = {
    "cross-encoder": lambda path: make_cross_encoder(path, "bert"),
    "with a module's folder": lambda path: make_pylate(path, "bert"),
}


@pytest.mark.parametrize(("dtype", "off"), [("float32", 0.05), ("bfloat16", 0.15)])
@pytest.mark.parametrize("kind", MAKE)
def test_the_need_is_what_is_taken(tmp_path: Path, kind: str, dtype: str, off: float) -> None:
    """Off by a pooler that is not served and a head that stays fp32, which weigh something in a toy only."""
    directory, tally = MAKE[kind](tmp_path / "model"), Tally()
    need = needed_bytes(directory, device="cpu", dtype=dtype, template=None)
    engine = Engine(directory, device=DEVICE, dtype=dtype, tally=tally)
    assert need == pytest.approx(engine.memory_bytes, rel=off)
    assert tally.nbytes == engine.memory_bytes


def test_a_broken_checkpoint_needs_nothing_and_its_load_says_why(tmp_path: Path) -> None:
    directory = make_cross_encoder(tmp_path / "model", "bert")
    (directory / "model.safetensors").write_bytes(b"cut")
    assert needed_bytes(directory, device="cpu", dtype="float32", template=None) == 0


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_loaded_model_keeps_nothing_of_the_file(tmp_path: Path, name: str) -> None:
    directory = make_cross_encoder(tmp_path / "model", "bert")
    if name.endswith(".bin"):
        torch.save(load_file(directory / "model.safetensors"), directory / name)
        (directory / "model.safetensors").unlink()
    engine = Engine(directory, device=DEVICE, dtype="float32")
    works = engine.tokenize_score(ScoreTexts("rain", ["stars burn", "rain falls"], 64)).work
    before = engine.run(works)
    size = (directory / name).stat().st_size
    with (directory / name).open("r+b") as file:  # in place, as `cp` does; a mapped file would change with it
        file.write(bytes(size))
    assert engine.run(works) == before
    assert str(directory) not in Path("/proc/self/maps").read_text() or name.endswith(".bin")


FREED_ON_TOP = """
import ctypes, threading
from sie_server.engine.storage.footprint import freeing

libc, size = ctypes.CDLL(None), 30 * 2**20
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
statm = open("/proc/self/statm", "rb", buffering=0)

def resident():
    statm.seek(0)
    return int(statm.read().split()[1]) * 4096

def work():  # on a thread, whose heap is not the process's first
    for _ in range(3):  # the first time something small comes to lie above the block
        with freeing():
            pass
        block = libc.malloc(size)
        ctypes.memset(block, 1, size)
        full = resident()
        libc.free(block)
        libc.malloc_trim(0)
        kept = resident()
        with freeing():
            pass
        end = resident()
    print(full - kept, full - end)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone keeps the top of a heap")
def test_what_is_free_on_top_of_a_threads_heap_goes_back() -> None:
    """30 MiB that were freed: the C library keeps them, even when told to trim; `freeing` gives them back."""
    ran = subprocess.run(
        [sys.executable, "-c", FREED_ON_TOP], capture_output=True, text=True, timeout=120, check=True
    )
    trimmed, freed = (int(figure) / 2**20 for figure in ran.stdout.split())
    assert trimmed < 5
    assert freed > 25


def test_measuring_goes_in_steps_of_one_pass(tmp_path: Path) -> None:
    engine = Engine(make_cross_encoder(tmp_path / "model", "bert"), device=DEVICE, dtype="float32")
    passes = sum(1 for _ in calibration(engine, 0.2))
    assert passes >= len(BATCH_SIZES["cpu"])
    assert engine.batch_tokens in BATCH_SIZES["cpu"]
    assert engine.tokens_per_second > 0


@pytest.mark.parametrize("fits", [0, 1, 2])
def test_batches_that_do_not_fit_are_not_chosen(
    tmp_path: Path, fits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that is nearly full still serves."""
    engine = Engine(make_cross_encoder(tmp_path / "model", "bert"), device=DEVICE, dtype="float32")
    run, most = Engine.run, BATCH_SIZES["cpu"][fits]

    def run_what_fits(self: Engine, works: list[Work]) -> list[Any]:
        if sum(len(work.tokens) for work in works) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, works)

    monkeypatch.setattr(Engine, "run", run_what_fits)
    for _ in calibration(engine, 0.2):
        pass
    assert engine.batch_tokens in BATCH_SIZES["cpu"][: fits + 1]
    most = 0
    with pytest.raises(torch.OutOfMemoryError):  # the smallest one has to
        list(calibration(engine, 0.2))


def test_the_budget_without_one() -> None:
    assert 2**27 < automatic_budget("cpu") < 2**50
