"""`sie-server score`: rerank the texts of a file without a server, or those of many queries from files to a file."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click
import msgspec
from click.core import ParameterSource

from sie_server.catalog import named_model
from sie_server.cli.console import errors, log_to_stderr, print_rows, write
from sie_server.cli.inputs import FORMATS, Columns, Text, read_texts
from sie_server.cli.judged import options as shared
from sie_server.cli.options import ENGINE_FIELDS, config_of, config_options
from sie_server.cli.score_files import JOB_FIELDS, score_files
from sie_server.config import DEFAULT_MODEL, ServerConfig
from sie_server.wire import Item, ScoreRequest, ScoreResponse

# parameters of one query, and of many
ONE = ("query", "file", "form", "text_column", "id_column", "as_json")
LOCAL = (*JOB_FIELDS, "reuse_vectors")  # of many queries in this process
MANY = ("queries", "docs", "candidates", "out", "depth", "endpoint", "deadline", "concurrency", *LOCAL)
FILE = click.Path(path_type=Path)


def _query(_context: click.Context, _option: click.Parameter, query: str | None) -> str | None:
    if query is None:
        return None
    if not query.strip():
        raise click.BadParameter("the query is empty")
    if not query.isascii() and any("\ud800" <= c <= "\udfff" for c in query):
        raise click.BadParameter("the query is not UTF-8")
    return query


@click.command()
@click.option("--query", "-q", callback=_query, help="The query that the texts of FILE are ranked for")
@click.argument("file", default="-", metavar="[FILE|-]")
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="Format of FILE; default: by extension or content",
)
@click.option("--text-column", default="text", show_default=True, help="Column or JSON key of the texts")
@click.option("--id-column", default="id", show_default=True, help="Column or JSON key of the ids; optional")
@click.option("--json", "as_json", is_flag=True, help="Print the server's JSON answer")
@click.option("--queries", type=FILE, metavar="FILE", help="Many queries instead of --query: ids and texts")
@click.option("--docs", type=FILE, metavar="FILE", help="Ids and texts of the documents")
@click.option(
    "--candidates",
    type=FILE,
    metavar="FILE",
    help="The documents of each query, as a TREC run or JSON lines; default: all of --docs",
)
@click.option(
    "--depth", type=click.IntRange(1), metavar="N", help="Score only the first N candidates of a query"
)
@click.option(
    "--out",
    type=FILE,
    metavar="FILE",
    help="File of the rankings; its end, .jsonl, .csv or .trec, is its format",
)
@shared.endpoint
@shared.deadline
@shared.concurrency
@click.option(
    "--reuse-vectors/--no-reuse-vectors",
    default=False,
    help="Late interaction: keep the vectors of documents for later queries. Faster where documents repeat, but the "
    "last digits of scores then depend on the queries before",
)
@click.option(
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    help="ID, ID=DIRECTORY or ID=HUB_ID; with --queries also ID:ADAPTER and ID@PROFILE",
)
@click.option("--top-n", type=click.IntRange(1), help="Show or write only the N best texts of a query")
@config_options(*ENGINE_FIELDS, *JOB_FIELDS)
@click.pass_context
def score(context: click.Context, /, config_file: str | None, **options: Any) -> None:
    """Rerank texts without a server.

    With --query: FILE, or stdin, has JSON objects {"id": …, "text": …}, one per line or as an array, or is a CSV or TSV
    table whose first row has the columns `text` and perhaps `id`, or has one text per line. Other keys and columns are
    not used. On a terminal the texts are shown shortened; elsewhere rank, score, id and text are separated by tabs.

    With --queries and --out: the documents of many queries are ranked, and the rankings are written to a file.
    Interrupted? Start the same command again: no query is scored twice. docs/offline.md describes the files.
    """
    _check_mode(context, options)
    if options["queries"] is not None:
        given = {name: options[name] for name in (*MANY, "model", "top_n", *ENGINE_FIELDS)}
        score_files(config_file=config_file, **given)
        return
    flags = {name: options[name] for name in ENGINE_FIELDS}
    _score_one(config_of(config_file, flags), options)


def _check_mode(context: click.Context, options: dict[str, Any]) -> None:
    """Refuse options that would have no effect."""
    many = options["queries"] is not None
    if not many and options["query"] is None:
        raise click.UsageError("name a query with --query, or a file of queries with --queries")
    unused = list(ONE if many else MANY)
    if many and options["endpoint"] is not None:
        unused += [*ENGINE_FIELDS, *LOCAL]
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in unused and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            flag = parameter.opts[0] if isinstance(parameter, click.Option) else "FILE"
            if name in (*ENGINE_FIELDS, *LOCAL) and many:
                raise click.UsageError(f"{flag} is for models in this process; omit it, or omit --endpoint")
            other = "--queries" if many else "--query"
            step = "name the files with --docs or --candidates" if name == "file" else "omit one of them"
            raise click.UsageError(f"{flag} does not go together with {other}; {step}")


def _score_one(config: ServerConfig, options: dict[str, Any]) -> None:
    model, top_n = options["model"], options["top_n"]
    config = msgspec.structs.replace(config, model=(model,))
    columns = Columns(options["text_column"], options["id_column"])
    texts = read_texts(options["file"], options["form"], columns, config.max_body_mb * 2**20)
    log_to_stderr("critical")  # `main` reports the error that ends the command
    items = [Item(id=str(i), text=text.text) for i, text in enumerate(texts)]  # ids in files may be equal
    request = ScoreRequest(Item(text=options["query"]), items, options={"top_n": top_n} if top_n else None)
    with errors.status(f"scoring {len(items)} texts with {model.partition('=')[0]} …"):
        response = asyncio.run(_score_once(config, request))
    if options["as_json"]:
        write(msgspec.json.encode(_with_ids(response, texts)).decode() + "\n")
    else:
        _print_scores(response, texts)
    for warning in response.warnings or []:
        click.echo(f"note: {warning}", err=True)


async def _score_once(config: ServerConfig, request: ScoreRequest) -> ScoreResponse:
    from sie_server.serving.metrics import RequestTiming
    from sie_server.serving.service import Service

    service = Service(config)
    try:
        await service.operations.preload()
        return await service.score(named_model(config.model[0]).id, request, RequestTiming())
    finally:
        await service.close()


def _with_ids(response: ScoreResponse, texts: list[Text]) -> ScoreResponse:
    scores = [msgspec.structs.replace(each, item_id=texts[int(each.item_id)].id) for each in response.scores]
    return msgspec.structs.replace(response, scores=scores)


def _print_scores(response: ScoreResponse, texts: list[Text]) -> None:
    rows = []
    for entry in response.scores:
        name, text = texts[int(entry.item_id)]
        rows.append([str(entry.rank), f"{entry.score:.4f}", name, " ".join(text.split())])
    print_rows(("rank", "score", "id", "text"), rows, whole=3)
