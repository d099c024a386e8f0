"""The table of `make bench` in small, and its budget, ratios and page."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from bench.comparison import Times
from bench.table import entries
from bench.table.__main__ import main
from bench.table.entries import OURS, REFERENCE
from bench.table.offline import EngineResult
from bench.table.plan import CELLS, LOADS, TABLE_SHAPES, Budget, Cell, chosen
from bench.table.plot import draw, panels
from bench.table.report import Report, into_page, markdown
from bench.table.served import MODEL, ServedResult, merged
from click.testing import CliRunner

from sie_server.loadtest.run import Outcome, Plan

ROOT = Path(__file__).resolve().parents[2]
CELL = Cell("minilm", "engine", "natural-100")
ABOUT = {
    "cpu": "CPU X",
    "cores": 2,
    "cpu_flags": ["avx2"],
    "threads": 2,
    "memory_gib": 8,
    "versions": {"torch": "2"},
    "date": "2026-01-01",
}


def table(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.table", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
def test_the_small_form_measures_engine_and_server(tmp_path: Path) -> None:
    some = ["--contenders", "SIE fp32", "--contenders", "sentence-transformers, default", "--infinity", ""]
    done = table("--tiny", "--rows", "minilm/*natural-100", *some, "--minutes", "10", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "table.json").read_text())
    [engine], [http] = found["engine"], found["http"]
    assert engine["row"] == "minilm/engine/natural-100" and engine["documents"] == 100
    assert all(len(engine["seconds"][label]) >= 2 for label in ("SIE fp32", REFERENCE))
    assert all(value > 50 for value in engine["peak_mib"].values())
    for clients in ("1", "8", "64"):
        [first, second] = http["phases"][clients]["SIE fp32"]
        assert first["requests"] > 0 and second["requests"] > 0 and not first["failures"]
        assert first["p50_ms"] <= first["p99_ms"]
    assert not found["left_out"]
    page = (tmp_path / "table.md").read_text()
    [line] = [line for line in page.splitlines() if line.startswith("| SIE fp32 |")]
    difference, tau = line.split(" | ")[-2:]
    assert float(difference) < 1e-3 and float(tau.rstrip(" |")) > 0.99  # equal to transformers
    assert (tmp_path / "table.svg").read_text().startswith("<?xml")


def test_wrong_patterns_name_the_known_ones() -> None:
    for option, known in (("--rows", "minilm/engine/natural-100"), ("--contenders", "SIE bf16")):
        done = CliRunner().invoke(main, [option, "nothing*"])
        assert done.exit_code == 2 and known in done.stderr and "'nothing*' matches no" in done.stderr


def test_rows_are_chosen_by_pattern_in_the_order_of_the_table() -> None:
    assert len({cell.name for cell in CELLS}) == len(CELLS) == 16
    assert chosen(["xlm-r/http/*", "minilm/*"]) == [c for c in CELLS if c.shape == "minilm"] + [
        Cell("xlm-r", "http", "natural-100")
    ]
    assert [entry.label for entry in entries.chosen(["SIE *"])] == ["SIE bf16", "SIE int8", "SIE fp32"]
    assert set(TABLE_SHAPES) == {cell.shape for cell in CELLS}


def test_time_that_one_row_leaves_goes_to_the_others() -> None:
    cells = [
        Cell("minilm", "engine", "natural-100"),
        Cell("minilm", "http", "natural-100"),
    ]  # of equal weights
    budget = Budget(100.0, cells)
    assert budget.share(cells) == pytest.approx(100, abs=1)
    assert budget.share(cells[:1]) == pytest.approx(50, abs=1)
    budget.done(cells[0])
    assert budget.share(cells[1:]) == pytest.approx(100, abs=1)


def test_loads_have_the_lengths_that_their_names_say() -> None:
    shape = TABLE_SHAPES["minilm"]
    for name, load in LOADS.items():
        texts = load.texts(shape)
        words = Counter(len(text.split()) for text in texts)
        assert len(texts) == load.documents
        assert (set(words) == {600}) if name == "512-100" else len(words) > 50


def engine_result(documents: int = 100) -> EngineResult:
    times = {OURS: Times([1.0, 2.0], [0.0, 0.1]), REFERENCE: Times([4.0, 6.0], [0.0, 0.5])}
    logits = {OURS: [0.0, 1.0, 2.5], REFERENCE: [0.0, 2.0, 1.0]}
    memory = {OURS: 100.0, REFERENCE: 200.0}
    batches = {OURS: 0, REFERENCE: 32}
    absent = {"SIE int8": "no VNNI"}
    return EngineResult(
        CELL,
        LOADS["natural-100"],
        documents,
        [10] * documents,
        times,
        logits,
        memory,
        batches,
        1e9,
        2e9,
        absent,
    )


def served_result() -> ServedResult:
    plan = Plan(1, 10, 1.0, 10)
    ours = [Outcome(plan, [0.1] * 10, last=1.0), Outcome(plan, [0.2] * 5, last=1.0)]
    cell = Cell("minilm", "http", "natural-100")
    other = [Outcome(plan, [0.4] * 4, last=2.0), Outcome(plan, [], Counter({"HTTP 503": 2}), last=0.0)]
    phases = {1: {OURS: ours, "infinity, bf16": other}}
    return ServedResult(cell, LOADS["natural-100"], {1: 10}, phases, {OURS: 300.0, "infinity, bf16": 900.0})


def report() -> Report:
    left_out = {"xlm-r/http/natural-100": "too short"}
    return Report(
        ABOUT,
        1.0,
        "make bench",
        60.0,
        [engine_result()],
        [served_result()],
        left_out,
        {"minilm": "MiniLM-L6"},
    )


def test_ratios_are_medians_of_rounds_and_rows_that_are_missing_have_a_reason() -> None:
    page = markdown(report())
    assert "**Engine: MiniLM-L6, 100 natural**: 100 documents, 1,000 tokens, 2 rounds; floor 500 ms" in page
    assert "| SIE bf16 | 1,500 | 1,000 | 66.7 | 1.00 | 2.00 | 100 | 1.5 | 0.333 |" in page
    # 4 ÷ 1 and 6 ÷ 2
    assert (
        "| sentence-transformers, default, batch 32 | 5,000 | 4,000 | 20.0 | 3.50 | 8.00 | 200 | – | – |"
        in page
    )
    assert "- SIE int8: no VNNI" in page and "- `xlm-r/http/natural-100`: too short" in page
    assert "| 1 × 10 | SIE bf16 | 75.0 | 1.00 | 100 | 200 | 200 | 0 | 300 |" in page
    assert "| 1 × 10 | infinity, bf16 | 20.0 | 0.10 | 400 | 400 | 400 | 2 | 900 |" in page
    assert "Other processes used 0.05 cores (median of all runs, largest 0.50); 75% of the runs" in page
    assert "100 documents of" not in page
    fewer = report()
    fewer.engine = [engine_result(documents=40)]
    assert "40 documents of 100, to fit the budget" in markdown(fewer)
    assert merged(served_result().phases[1][OURS])["requests"] == 15 and MODEL == "bench/model"


def test_the_table_replaces_its_block_in_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- generated: table -->\nold\n<!-- end -->\nb\n")
    into_page(page, "new \\1\n")
    assert page.read_text() == "a\n<!-- generated: table -->\nnew \\1\n<!-- end -->\nb\n"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has no block"):
        into_page(page, "new")
    assert "<!-- generated: table -->" in (ROOT / "docs/performance.md").read_text()


def test_the_plot_has_a_panel_per_cell(tmp_path: Path) -> None:
    found = panels(report())
    assert [title for title, _ in found] == [
        "MiniLM-L6, 100 natural: engine",
        "MiniLM-L6, 100 natural: HTTP",
    ]
    assert found[0][1] == {OURS: pytest.approx(100 / 1.5), REFERENCE: pytest.approx(20.0)}
    assert draw(report(), tmp_path / "plot.svg") and (tmp_path / "plot.svg").stat().st_size > 1000
    assert not draw(Report(ABOUT, 1.0, ""), tmp_path / "empty.svg")
