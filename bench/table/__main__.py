"""This engine and server next to other libraries, in one table.

    python -m bench.table                        # or: make bench; all rows in 15 minutes
    python -m bench.table --quick                # two rows in two minutes
    python -m bench.table --rows 'xlm-r/*'       # some rows

Writes table.json, table.md, table.svg and table.log. `--docs` also updates docs/performance.md and its plot.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import psutil
import torch
from bench import machine
from bench.table import entries, offline, plot, served
from bench.table.plan import CELLS, Budget, chosen
from bench.table.report import Report, into_page, markdown
from bench.table.run import Setting, run_shape
from bench.workload import ROOT
from rich.console import Console

OUT = ROOT / "bench" / "out"
PAGE = ROOT / "docs" / "performance.md"
QUICK = ("minilm/engine/natural-100", "minilm/http/natural-100")
QUICK_MINUTES, MINUTES = 1.7, 15.0
FLAGS = ("amx_int8", "amx_bf16", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx512f", "avx2")
PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "openvino",
    "nncf",
    "onnxruntime",
    "sie-kernels",
)
console = Console(width=None if Console().is_terminal else 160, highlight=False)


def about() -> dict[str, Any]:
    """Describe the machine and the versions of everything that takes part."""
    found = machine.describe()
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        **found,
        "cpu_flags": [flag for flag in FLAGS if flag in machine.flags()],
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "versions": versions,
        "date": date.today().isoformat(),
    }


def as_json(report: Report) -> dict[str, Any]:
    return {
        "machine": report.machine,
        "command": report.command,
        "seconds": round(report.seconds, 1),
        "engine": [offline.as_json(result) for result in report.engine],
        "http": [served.as_json(result) for result in report.served],
        "left_out": report.left_out,
    }


def write(report: Report, out: Path, docs: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.json").write_text(json.dumps(as_json(report), indent=1) + "\n", encoding="utf-8")
    drawn = plot.draw(report, out / "table.svg")
    (out / "table.md").write_text(markdown(report, "table.svg" if drawn else None), encoding="utf-8")
    if docs:
        figure = PAGE.with_suffix(".svg")
        drawn = plot.draw(report, figure)
        into_page(PAGE, markdown(report, figure.name if drawn else None))


@click.command()
@click.option(
    "--minutes", type=click.FloatRange(0.2, 240), default=MINUTES, show_default=True, help="For all rows"
)
@click.option("--quick", is_flag=True, help="Two rows of MiniLM-L6 in less than two minutes")
@click.option(
    "--rows", multiple=True, metavar="PATTERN", help="Rows to run, such as 'minilm/*'; may be repeated"
)
@click.option(
    "--contenders", multiple=True, metavar="PATTERN", help="Contenders, such as 'SIE*'; may be repeated"
)
@click.option("--list", "only_list", is_flag=True, help="Print the names of the rows")
@click.option(
    "--threads", type=click.IntRange(0), default=0, help="CPU threads of all contenders; 0: all cores"
)
@click.option(
    "--infinity",
    metavar="COMMAND",
    help="infinity's command; default: infinity_emb, if it is found; an empty one leaves it out",
)
@click.option("--tiny", is_flag=True, help="Tiny models of the same kinds, to test this command")
@click.option("--docs", is_flag=True, help="Also write the table to docs/performance.md, and its plot")
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="Directory for the report")
def main(
    minutes: float,
    quick: bool,
    rows: tuple[str, ...],
    contenders: tuple[str, ...],
    only_list: bool,
    threads: int,
    infinity: str | None,
    tiny: bool,
    docs: bool,
    out: Path,
) -> None:
    """Compare this engine and server with other libraries on this machine."""
    if only_list:
        click.echo("\n".join(cell.name for cell in CELLS))
        return
    try:
        cells = chosen(rows or (QUICK if quick else ("*",)))
        taking_part = entries.chosen(contenders or ("*",))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=["--rows", "--contenders"]) from None
    minutes = min(minutes, QUICK_MINUTES) if quick else minutes
    if threads:
        torch.set_num_threads(threads)
    command = " ".join(["python -m bench.table", *sys.argv[1:]])
    report, start = Report(about(), minutes, command), time.monotonic()
    budget = Budget(minutes * 60, cells)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "table.log").open("wb") as log:
        setting = Setting(budget, taking_part, threads, infinity, tiny, log, lambda line: console.print(line))
        for key in dict.fromkeys(cell.shape for cell in cells):
            with tempfile.TemporaryDirectory() as folder:
                run_shape(key, [cell for cell in cells if cell.shape == key], Path(folder), setting, report)
            report.seconds = time.monotonic() - start
            write(report, out, docs)  # after each shape, so that an interruption loses little
    console.print(markdown(report))
    console.print(f"wrote table.json, table.md and table.svg to {out}")


if __name__ == "__main__":
    main()
