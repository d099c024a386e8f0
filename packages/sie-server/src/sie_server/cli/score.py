"""`sie-server score`: rerank the texts of a file without a server."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import msgspec

from sie_server.catalog import named_model
from sie_server.cli.console import errors, log_to_stderr, print_rows, write
from sie_server.cli.inputs import FORMATS, Columns, Text, read_texts
from sie_server.cli.options import ENGINE_FIELDS, config_of, config_options
from sie_server.config import DEFAULT_MODEL, ServerConfig
from sie_server.wire import Item, ScoreRequest, ScoreResponse


def _query(_context: click.Context, _option: click.Parameter, query: str) -> str:
    if not query.strip():
        raise click.BadParameter("the query is empty")
    if not query.isascii() and any("\ud800" <= c <= "\udfff" for c in query):
        raise click.BadParameter("the query is not UTF-8")
    return query


@click.command()
@click.option("--query", "-q", required=True, callback=_query, help="The query that texts are ranked for")
@click.argument("file", default="-", metavar="[FILE|-]")
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="Format of the input; default: by extension or content",
)
@click.option("--text-column", default="text", show_default=True, help="Column or JSON key of the texts")
@click.option("--id-column", default="id", show_default=True, help="Column or JSON key of the ids; optional")
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="ID, ID=DIRECTORY or ID=HUB_ID")
@click.option("--top-n", type=click.IntRange(1), help="Show only the N best texts")
@click.option("--json", "as_json", is_flag=True, help="Print the server's JSON answer")
@config_options(*ENGINE_FIELDS)
def score(
    query: str,
    file: str,
    form: str | None,
    text_column: str,
    id_column: str,
    model: str,
    top_n: int | None,
    as_json: bool,
    config_file: str | None,
    **flags: Any,
) -> None:
    """Rerank texts without a server.

    FILE, or stdin, has JSON objects {"id": …, "text": …}, one per line or as an array, or is a CSV or TSV table whose
    first row has the columns `text` and perhaps `id`, or has one text per line. Other keys and columns are not used.
    On a terminal the texts are shown shortened; elsewhere rank, score, id and text are separated by tabs.
    """
    config = msgspec.structs.replace(config_of(config_file, flags), model=(model,))
    texts = read_texts(file, form, Columns(text_column, id_column), config.max_body_mb * 2**20)
    log_to_stderr("critical")  # `main` reports the error that ends the command
    items = [Item(id=str(i), text=text.text) for i, text in enumerate(texts)]  # ids in files may be equal
    request = ScoreRequest(Item(text=query), items, options={"top_n": top_n} if top_n else None)
    with errors.status(f"scoring {len(items)} texts with {model.partition('=')[0]} …"):
        response = asyncio.run(_score_once(config, request))
    if as_json:
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
