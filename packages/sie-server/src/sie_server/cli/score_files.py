"""`sie-server score --queries`: the options of a job over files, and its messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from sie_server.cli.console import errors, log_to_stderr
from sie_server.cli.judged.endings import resumable
from sie_server.cli.options import ENGINE_FIELDS, config_of

JOB_FIELDS = ("models_dir", "adapter", "memory_budget_mb")


def score_files(
    *,
    queries: Path,
    docs: Path | None,
    candidates: Path | None,
    out: Path | None,
    depth: int | None,
    top_n: int | None,
    endpoint: str | None,
    deadline: float,
    concurrency: int,
    reuse_vectors: bool,
    model: str,
    config_file: str | None,
    **flags: Any,
) -> None:
    """Rank the documents of many queries.

    Raises:
        ClickException: files, model or endpoint cannot be used, or the work was interrupted by an error.
    """
    from sie_server.offline.progress import Reporter
    from sie_server.rankings.job import Job, rank_files

    if docs is None and candidates is None:
        raise click.UsageError("--queries needs documents: name their file with --docs or --candidates")
    if out is None:
        raise click.UsageError("--queries needs --out: a file that ends in .jsonl, .csv or .trec")
    if depth is not None and candidates is None:
        raise click.UsageError("--depth needs --candidates: without them every query ranks all documents")
    fields = (*ENGINE_FIELDS, *JOB_FIELDS)
    config = config_of(config_file, {name: flags[name] for name in fields})
    if not reuse_vectors:  # a job that was interrupted has read other documents before a query
        config = msgspec.structs.replace(config, document_cache_mb=0)
    log_to_stderr("error")
    with resumable():
        job = Job(queries, out, docs, candidates, depth, top_n, concurrency, Reporter(errors))
        done = rank_files(job, model, endpoint=endpoint, deadline_s=deadline, config=config)
    for note in done.notes:
        click.echo(f"note: {note}", err=True)
    if done.truncated or done.truncated_queries:
        click.echo(
            f"note: {done.truncated} of {done.pairs} texts and {done.truncated_queries} of {done.queries} queries "
            "are longer than the model reads and were cut",
            err=True,
        )
    click.echo(
        f"{done.queries} queries, {done.pairs} documents ranked: {click.format_filename(out)}", err=True
    )
