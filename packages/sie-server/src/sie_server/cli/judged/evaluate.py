"""`sie-server eval`: how well models rerank the candidates of judged queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sie_server.cli.console import errors, log_to_stderr, print_rows, write_json
from sie_server.cli.judged import options as shared
from sie_server.cli.judged.endings import resumable
from sie_server.cli.options import ENGINE_FIELDS, config_of, config_options
from sie_server.config import DEFAULT_MODEL

FIELDS = (*ENGINE_FIELDS, "models_dir", "adapter", "memory_budget_mb")
HEADER = (
    *("set", "model", "metric", "before", "after", "difference", "low", "high", "p", "wins/ties/losses"),
    *("p50 ms", "p95 ms", "pairs/s", "truncated"),
)


@click.command("eval")
@click.option(
    "--data",
    "-d",
    multiple=True,
    required=True,
    metavar="DIR|FILE",
    help="A folder with corpus, queries and qrels, or a file of query, text and grade; may be repeated",
)
@click.option(
    "--model",
    "-m",
    "models",
    multiple=True,
    default=(DEFAULT_MODEL,),
    metavar="[encode:]ID[:ADAPTER][@PROFILE][=SOURCE]",
    help="A model to compare; with `encode:`, by the cosine of its dense vectors; may be repeated; "
    f"default: `{DEFAULT_MODEL}`",
)
@shared.qrels
@click.option(
    "--first-stage",
    default="bm25",
    show_default=True,
    metavar="bm25|RUN|encode:MODEL|judged",
    help="The candidates: BM25, a TREC run (or a folder of SET.trec), the nearest vectors of a model, or the "
    "judged texts in their order",
)
@shared.depth
@click.option(
    "--metrics",
    default="ndcg@10,mrr@10,recall@100,map,p@1",
    show_default=True,
    help="Names with commas; the first one decides which queries gained and lost",
)
@shared.endpoint
@shared.deadline
@shared.queries
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the sample, the test and the bootstrap"
)
@click.option(
    "--test",
    type=click.Choice(["randomisation", "t"]),
    default="randomisation",
    show_default=True,
    help="The paired test",
)
@click.option(
    "--windows/--no-windows",
    default=False,
    help="Score queries with truncated documents also in windows, which shows the quality that truncation costs",
)
@click.option(
    "--compare-dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "int8"]),
    help="Score also in this number format, which shows the quality that the one of --dtype costs",
)
@shared.concurrency
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("sie-eval"),
    show_default=True,
    help="Directory for the report and for finished queries, from which the same command resumes",
)
@click.option("--json", "as_json", is_flag=True, help="Print report.json instead of the table")
@config_options(*FIELDS)
def evaluate(
    data: tuple[str, ...],
    models: tuple[str, ...],
    metrics: str,
    deadline: float,
    out: Path,
    as_json: bool,
    config_file: str | None,
    **options: Any,
) -> None:
    """Measure how well models rerank, on your own judgments.

    Every set has a corpus, queries and judgments. The first stage finds candidates of each query, each model reranks
    them, and the report compares the rankings before and after. The report, a plot and TREC runs are written to --out.
    Interrupted? Start the same command again: finished queries are not scored twice.

    Columns, separated by tabs unless stdout is a terminal: set, model, metric, before, after, difference, its interval
    (low, high), p, wins/ties/losses, p50 and p95 in ms, pairs per second, and the share of truncated pairs.
    """
    from sie_server.eval import evaluate as run
    from sie_server.eval.metrics import parse_metrics
    from sie_server.offline.progress import Reporter

    config = config_of(config_file, {name: options.pop(name) for name in FIELDS})
    log_to_stderr("critical")  # the error that ends the command is reported once, by `main`
    with resumable():
        report = run(
            list(data),
            models,
            metrics=parse_metrics(metrics),
            deadline_s=deadline,
            config=config,
            out=out,
            reporter=Reporter(errors),
            **options,
        )
        report.write(out)
    for each in report.sets:
        for note in each.notes:
            click.echo(f"note: {each.name}: {note}", err=True)
    if as_json:
        write_json(report.as_dict())
    else:
        print_rows(HEADER, [_cells(row) for row in report.rows()], whole=6)
    click.echo(f"report, plot and runs: {click.format_filename(out)}", err=True)


def _cells(row: dict[str, Any]) -> list[str]:
    numbers = [f"{row[name]:.4f}" for name in ("before", "after")]
    signed = [f"{row[name]:+.4f}" for name in ("difference", "low", "high")]
    queries = f"{row['wins']}/{row['ties']}/{row['losses']}"
    times = [f"{row[name]:.1f}" for name in ("p50_ms", "p95_ms")]
    rate, truncated = f"{row['pairs_per_s']:.0f}", f"{row['truncated']:.1%}"
    names = [row["set"], row["model"], row["metric"]]
    return [*names, *numbers, *signed, f"{row['p']:.4f}", queries, *times, rate, truncated]
