"""`sie-server score --queries`: the options of a job over files, and its messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from sie_server.cli.console import errors, log_to_stderr
from sie_server.cli.judged.endings import resumable
from sie_server.cli.options import ENGINE_FIELDS, config_of
from sie_server.config import ServerConfig

JOB_FIELDS = ("models_dir", "adapter", "memory_budget_mb", "batch_tokens")
BATCH_TOKENS = 4096  # of a job, unless --batch-tokens says otherwise


def reproducible(config: ServerConfig, reuse_vectors: bool) -> ServerConfig:
    """Return the configuration with which every start of a job computes a query in the same batches.

    A measured batch size differs from start to start, and an interrupted job has read other documents before a query.
    """
    sized = msgspec.structs.replace(config, batch_tokens=config.batch_tokens or BATCH_TOKENS)
    return sized if reuse_vectors else msgspec.structs.replace(sized, document_cache_mb=0)


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
    if endpoint is None:
        config = reproducible(config, reuse_vectors)
    log_to_stderr("critical")  # the error that ends the command is reported once, by `main`
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
