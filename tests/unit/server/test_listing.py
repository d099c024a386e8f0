"""Lists of the command line: one line per row, whole ids at every width, tabs in a pipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len

from sie_server.catalog import catalog
from sie_server.cli.commands import cli
from sie_server.cli.console import aligned
from sie_server.cli.models import HEADER, _cells, _model_row


def run(*args: str, **kwargs: object) -> Result:
    return CliRunner().invoke(cli, list(args), **kwargs)  # type: ignore[arg-type]


def test_a_pipe_gets_one_line_per_model_with_tabs() -> None:
    lines = run("models").stdout.splitlines()
    known = catalog()
    assert [line.split("\t")[0] for line in lines] == sorted(known)
    assert {len(line.split("\t")) for line in lines} == {len(HEADER)}
    by_id = {line.split("\t")[0]: line.split("\t") for line in lines}
    for name, model in known.items():
        assert model.entry is not None
        assert by_id[name][4] == model.entry.description and by_id[name][1] == ",".join(model.entry.outputs)
        assert [alias for alias in by_id[name][5].split(",") if alias != "-"] == list(model.aliases)


@pytest.mark.parametrize("columns", [1, 10, 40, 80, 120, 200, 1000])
def test_a_terminal_shows_ids_whole_and_one_line_per_model(columns: int) -> None:
    rows = [_cells(_model_row(name, model)) for name, model in sorted(catalog().items())]
    lines = aligned([list(HEADER), *rows], columns)
    for row, line in zip(rows, lines[1:], strict=True):
        assert line == row[0] or line.startswith(row[0] + " "), line
        shown = [cell.strip() for cell in line.removesuffix(" …").split("  ") if cell.strip()]
        assert all(any(c == each or (" " in each and each.startswith(c)) for each in row) for c in shown), (
            line
        )
        assert cell_len(line) <= max(columns, max(cell_len(each[0]) for each in rows))
    if columns == 1000:
        assert all(line.endswith(row[-1]) for row, line in zip(rows, lines[1:], strict=True))
    elif columns == 120:
        assert sum(line.endswith(" …") for line in lines) > len(rows) / 2
        assert sum("reranker" in line[60:] or "ncoder" in line[60:] for line in lines) > len(rows) / 2


def test_wide_characters_and_control_characters_keep_the_lines() -> None:
    lines = aligned([["org/模型", "score", "说明" * 40], ["a", "dense", "x"]], 30)
    assert lines[0].startswith("org/模型  score") and cell_len(lines[0]) <= 30
    assert lines[1].index("dense") == cell_len("org/模型  ")


def test_models_takes_a_pattern() -> None:
    ids = {row["id"] for row in json.loads(run("models", "BGE-reranker", "--json").stdout)}
    assert ids == {name for name in catalog() if "bge-reranker" in name.lower()} and len(ids) > 3
    assert run("models", "cross-encoder/ms-marco-MiniLM-L-6-v2").stdout.count("\n") == 1  # an alias
    assert {line.split("/")[0] for line in run("models", "jinaai/*").stdout.splitlines()} == {"jinaai"}
    nothing = run("models", "bge-rerankr-base")
    assert nothing.exit_code == 1 and "no model matches 'bge-rerankr-base'" in nothing.output


@pytest.mark.parametrize("query", ["", "  \t", "\udcff"])
def test_a_query_without_text_is_refused(tmp_path: Path, query: str) -> None:
    file = tmp_path / "a.txt"
    file.write_text("a")
    done = run("score", "-q", query, str(file))
    assert done.exit_code == 2 and "the query is" in done.output


def test_score_ranks_a_table_in_a_pipe_with_ids_that_repeat(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(
        '\ufeffid,text\n7,Rain tomorrow.\n7,"Machine learning\tlearns\nfrom data."\n', encoding="utf-8"
    )
    query = ["-q", "What is machine learning?", str(file), "--device", "cpu"]
    done = run("score", *query, env={"SIE_BATCH_TOKENS": "2048", "SIE_THREADS": "1"})  # not measured
    assert done.exit_code == 0, done.output
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == ["0", "1"] and [row[2] for row in rows] == ["7", "7"]
    assert [row[3] for row in rows] == ["Machine learning learns from data.", "Rain tomorrow."]
    assert float(rows[0][1]) > float(rows[1][1])
