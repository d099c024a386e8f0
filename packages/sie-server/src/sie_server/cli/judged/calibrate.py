"""`sie-server calibrate`: probabilities of relevance, and thresholds, from judged queries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sie_server.cli.console import errors, log_to_stderr, print_rows, write_json
from sie_server.cli.judged import options as shared
from sie_server.cli.judged.endings import resumable
from sie_server.cli.judged.evaluate import FIELDS
from sie_server.cli.options import config_of, config_options

if TYPE_CHECKING:
    from sie_server.eval.calibration.run import CalibrationReport

SHARE = click.FloatRange(0, 1, min_open=True)


@click.command()
@click.argument("model", metavar="ID[@PROFILE][=SOURCE]")
@click.option(
    "--data",
    "-d",
    multiple=True,
    required=True,
    metavar="DIR|FILE",
    help="Judged queries as for `eval`; may be repeated",
)
@shared.qrels
@click.option(
    "--method",
    type=click.Choice(["platt", "isotonic"]),
    default="platt",
    show_default=True,
    help="A logistic curve, or a rising curve of any form, which needs more judgments",
)
@click.option("--precision", type=SHARE, help="Find the threshold for this precision")
@click.option("--recall", type=SHARE, help="Find the threshold for this recall")
@click.option(
    "--unjudged",
    type=click.Choice(["leave-out", "irrelevant"]),
    default="leave-out",
    show_default=True,
    help="Candidates without a judgment",
)
@click.option(
    "--first-stage",
    default="bm25",
    show_default=True,
    metavar="bm25|RUN|judged",
    help="The candidates, as for `eval`",
)
@shared.depth
@click.option(
    "--folds", type=click.IntRange(2, 100), default=5, show_default=True, help="Parts that are held out"
)
@shared.queries
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the sample, folds and bootstrap"
)
@click.option("--name", default="calibrated", show_default=True, help="Name of the profile")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("sie-calibration"),
    show_default=True,
    help="Directory for the report and for finished queries, from which the same command resumes",
)
@click.option("--json", "as_json", is_flag=True, help="Print calibration.json instead of the table")
@config_options(*FIELDS)
def calibrate(
    model: str,
    data: tuple[str, ...],
    method: Any,
    precision: float | None,
    recall: float | None,
    unjudged: Any,
    folds: int,
    name: str,
    out: Path,
    as_json: bool,
    config_file: str | None,
    **options: Any,
) -> None:
    """Turn a model's scores into probabilities of relevance, on your own judgments.

    The raw scores of judged candidates are fitted to the judgments. Brier score and calibration error are measured on
    queries that were held out. With --models-dir, the calibration and a profile that uses it are written there, and
    requests with this profile get probabilities in the same order as before.
    """
    from sie_server.eval.calibration.entry import store
    from sie_server.eval.calibration.run import Goals
    from sie_server.eval.calibration.run import calibrate as run
    from sie_server.offline.progress import Reporter

    if precision is not None and recall is not None:
        raise click.UsageError("--precision and --recall exclude each other; name one")
    goal = ("precision", precision) if precision is not None else ("recall", recall)
    config = config_of(config_file, {field: options.pop(field) for field in FIELDS})
    log_to_stderr("critical")  # the error that ends the command is reported once, by `main`
    with resumable():
        goals = Goals(method, folds, unjudged, goal if goal[1] is not None else None, name)  # type: ignore[arg-type]
        report = run(list(data), model, goals, config=config, out=out, reporter=Reporter(errors), **options)
        _write(report, out)
        stored = store(report.entry, config.models_dir) if config.models_dir else None
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        write_json(report.as_dict())
    else:
        print_rows(("figure", "value", "low", "high"), _rows(report))
    where = stored or out / "calibrated.yaml"
    step = "" if stored else "; copy it into the models directory, or name that with --models-dir"
    click.echo(f"profile {name!r}: {click.format_filename(where)}{step}", err=True)


def _write(report: CalibrationReport, out: Path) -> None:
    from sie_server.eval.calibration.entry import as_yaml
    from sie_server.eval.calibration.plot import draw_reliability
    from sie_server.offline.errors import OfflineError

    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "calibration.json").write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
        (out / "calibrated.yaml").write_text(as_yaml(report.entry), encoding="utf-8")
        draw_reliability(report.before, report.after, out / "reliability.png")
    except OSError as error:
        raise OfflineError(f"cannot write the report to {out}: {error.strerror or error}") from None


def _rows(report: CalibrationReport) -> list[list[str]]:
    rows = [
        ["pairs", str(report.pairs), "", ""],
        ["relevant", str(report.relevant), "", ""],
        ["queries", str(report.queries), "", ""],
        ["Brier before", f"{report.before.brier:.4f}", "", ""],
        ["Brier after", f"{report.after.brier:.4f}", "", ""],
        ["ECE before", f"{report.before.ece:.4f}", "", ""],
        ["ECE after", f"{report.after.ece:.4f}", "", ""],
    ]
    if found := report.threshold:
        rows.append(["threshold", f"{found.probability:.4f}", "", ""])
        for name, share in (("precision", found.precision), ("recall", found.recall)):
            rows.append([name, f"{share.value:.4f}", f"{share.low:.4f}", f"{share.high:.4f}"])
    return rows
