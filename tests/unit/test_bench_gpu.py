"""`python -m bench.gpu` in small on the CPU, and its judgment of families."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.gpu.families import distance, fine
from bench.gpu.report import markdown
from bench.gpu.shapes import SHAPES
from bench.gpu.speed import batches, ratio

from sie_server.engine.job import Work, build_job
from sie_server.models.batch import Tokens

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


def test_the_small_form_runs_on_a_cpu_and_writes_both_reports(tmp_path: Path) -> None:
    done = run("--device", "cpu", "--tiny", "--seconds", "600", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert len(found["families"]) == 2 and all(map(fine, found["families"].values()))
    assert set(found["speed"]["shapes"]) == {"MiniLM-L6", "Qwen3-0.6B"}
    for row in found["speed"]["shapes"].values():
        assert "error" not in row, row
        assert len(row["rows"]) >= 3 and row["ratio"] > 0 and row["pairs"] == 12
        assert all(0 < figures["share of the product rate"] < 10 for figures in row["rows"].values())
    assert found["profile"] and found["probes"]["packages"]["torch"] == torch.__version__
    page = (tmp_path / "gpu.md").read_text()
    assert "2 of 2 agree" in page and "| MiniLM-L6 | sentence-transformers, 4 pairs |" in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_gets_one_line() -> None:
    done = run()
    assert done.returncode == 1 and done.stdout == ""
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("bench.gpu: device 'cuda' was requested, but")


def test_a_family_that_differs_or_fails_is_no_success() -> None:
    good = {"allowed": 1e-3, "float32": 1e-4, "bfloat16": 0.1}
    assert fine(good)
    assert not fine(good | {"float32": 0.01})
    assert not fine({"allowed": 1e-3, "float32": 1e-4, "error": "RuntimeError"})
    assert not fine({"error": "not reached"})
    one, two = np.array([1.0, 2.0]), np.array([1.0, 2.5])
    assert distance([one], [two]) == 0.5 and distance([one], [one[:1]]) == float("inf")
    speed = {"product rate": 1e12, "shapes": {"MiniLM-L6": {"error": "not reached"}}}
    families = {"a": good, "b": {"error": "not reached"}}
    probes = {"packages": {"torch": "2"}, "card": {"name": "Card X"}}
    page = markdown(
        {"device": "cuda", "seconds": 1.0, "probes": probes, "families": families, "speed": speed}
    )
    assert (
        "# Engine on Card X" in page and "1 of 2 agree" in page and "| b | – | – | – | not reached |" in page
    )


def test_operations_are_those_of_the_real_models() -> None:
    """Twice the parameters of the layers for a token: 10.6 million of MiniLM-L6, 440 million of Qwen3-0.6B."""
    sizes = {shape.name: shape.layers * sum(i * o for i, o in shape.sizes) for shape in SHAPES}
    assert sizes["MiniLM-L6"] == pytest.approx(10.6e6, rel=0.01)
    assert sizes["XLM-R base"] == pytest.approx(85e6, rel=0.01)
    assert sizes["XLM-R large"] == pytest.approx(302e6, rel=0.01)
    assert sizes["gte-modernbert"] == pytest.approx(110e6, rel=0.02)
    assert sizes["Qwen3-0.6B"] == pytest.approx(440e6, rel=0.01)
    assert SHAPES[0].flops([1]) == pytest.approx(2 * sizes["MiniLM-L6"], rel=0.01)


def test_batches_hold_all_works_in_order_within_the_limit() -> None:
    sequences = [Tokens(np.full(n, 1, np.int32), n) for n in (50, 30, 30, 20, 10)]
    job = build_job(("score",), [], [])
    works = [Work(tokens, i, job) for i, tokens in enumerate(sequences)]
    parts = list(batches(works, 60))
    assert [[w.index for w in part] for part in parts] == [[0], [1, 2], [3, 4]]
    assert [len(part) for part in batches(works, 1)] == [1] * 5
    assert ratio({"ours, texts of 1": 2.0, "sentence-transformers, 4 pairs": 6.0}) == 3.0
    assert ratio({"ours, texts of 1": 2.0}) is None
