"""The commands of `sie-server`.

`serve` runs the server, `score` reranks without one, `verify` compares a model with its reference, `models` lists the
models that can be served, and `admin` (cli/admin.py) controls a running server.

The flags are generated from the fields of `ServerConfig`. Slow imports are deferred until a command needs them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import IO, Any, get_args, get_origin

import click
import msgspec
from rich.logging import RichHandler
from rich.table import Table

from sie_server import __version__
from sie_server.catalog import configured_adapters, id_of, known_models
from sie_server.catalog.entries import ModelConfig
from sie_server.cli.admin import admin
from sie_server.cli.console import errors, output
from sie_server.config import DEFAULT_MODEL, ConfigError, ServerConfig, is_secret, load_config
from sie_server.errors import SIEError
from sie_server.keys import read_keys
from sie_server.logs import PLAIN, OneLine
from sie_server.wire import Item, ScoreRequest, ScoreResponse

Command = Callable[..., Any]
ENGINE_FIELDS = ("device", "dtype", "offline", "threads")  # also apply without a server


def config_options(*fields: str) -> Callable[[Command], Command]:
    """Add a flag for each of the named configuration fields (default: all) that is not a secret."""

    def decorate(command: Command) -> Command:
        for field in reversed(msgspec.structs.fields(ServerConfig)):
            if (not fields or field.name in fields) and not is_secret(field):
                command = _option(field)(command)
        return click.option(
            "--config", "config_file", envvar="SIE_CONFIG", help="TOML file with the same settings"
        )(command)

    return decorate


def _option(field: msgspec.structs.FieldInfo) -> Callable[[Command], Command]:
    meta = next((m for m in get_args(field.type) if isinstance(m, msgspec.Meta)), None)
    kind = get_args(field.type)[0] if meta else field.type
    shown = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
    flag = f"--{field.name.replace('_', '-')}"
    default = "" if shown is None else f"; default: {shown}"
    description = meta.description if meta else ""
    text = f"{description or ''}  [SIE_{field.name.upper()}{default}]"
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", field.name, default=None, help=text)
    if get_origin(kind) is tuple:
        metavar = {"model": "ID[=SOURCE]", "cors_origins": "ORIGIN"}.get(field.name, "DIRECTORY")
        return click.option(flag, field.name, multiple=True, default=None, metavar=metavar, help=text)
    choices = [str(c) for c in get_args(kind)] if all(isinstance(c, str) for c in get_args(kind)) else []
    parameter = (
        click.Choice(choices) if choices else {int: click.INT, float: click.FLOAT}.get(kind, click.STRING)
    )
    return click.option(flag, field.name, type=parameter, default=None, help=text)


def _config(config_file: str | None, flags: dict[str, Any]) -> ServerConfig:
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    return load_config(given, os.environ, config_file)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="sie-server")
def cli() -> None:
    """SIE: a self-hosted inference engine for reranking."""


cli.add_command(admin)


@cli.command()
@config_options()
def serve(config_file: str | None, **flags: Any) -> None:
    """Answer score and encode requests over HTTP until stopped."""
    config = _config(config_file, flags)
    # Configuration errors are reported before the slow imports; ignored files are logged later.
    known = known_models(config.model, config.models_dir, report=False)
    configured_adapters(config.adapter, known)
    read_keys(config)
    _log_to_stderr(config.log_level)
    from sie_server.api.server import serve as run

    run(config)


@cli.command()
@click.option("--query", "-q", required=True, help="The query that texts are ranked for")
@click.argument("file", type=click.File("r", encoding="utf-8"), default="-", metavar="[FILE.jsonl|-]")
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="ID, ID=DIRECTORY or ID=HUB_ID")
@click.option("--top-n", type=click.IntRange(1), help="Show only the N best texts")
@click.option("--json", "as_json", is_flag=True, help="Print the server's JSON answer")
@config_options(*ENGINE_FIELDS)
def score(
    query: str,
    file: IO[str],
    model: str,
    top_n: int | None,
    as_json: bool,
    config_file: str | None,
    **flags: Any,
) -> None:
    """Rerank texts without a server. The input has one JSON object per line, {"id": …, "text": …}; `id` is optional."""
    config = msgspec.structs.replace(_config(config_file, flags), model=(model,))
    try:
        items = [_read_item(line, i) for i, line in enumerate(file, 1) if line.strip()]
    except UnicodeDecodeError as error:
        raise click.ClickException(f"the input is not UTF-8: {error.reason}") from None
    if not items:
        raise click.ClickException("the input contains no texts")
    _log_to_stderr("error")
    request = ScoreRequest(Item(text=query), items, options={"top_n": top_n} if top_n else None)
    with errors.status(f"scoring {len(items)} texts with {model.partition('=')[0]} …"):
        response = asyncio.run(_score_once(config, request))
    if as_json:
        click.echo(msgspec.json.encode(response).decode())
    else:
        _print_scores(response, items)


async def _score_once(config: ServerConfig, request: ScoreRequest) -> ScoreResponse:
    from sie_server.serving.metrics import RequestTiming
    from sie_server.serving.service import Service

    service = Service(config)
    try:
        await service.operations.preload()
        return await service.score(config.model[0].partition("=")[0], request, RequestTiming())
    finally:
        await service.close()


def _read_item(line: str, number: int) -> Item:
    try:
        item = msgspec.json.decode(line, type=Item)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise click.ClickException(f'line {number}: {error}; expected {{"id": "…", "text": "…"}}') from None
    if item.text is None:
        raise click.ClickException(f"line {number}: missing required field `text`")
    return item


def _print_scores(response: ScoreResponse, items: list[Item]) -> None:
    texts = {item.id if item.id is not None else f"item-{i}": item.text for i, item in enumerate(items)}
    table = Table("rank", "score", "id", "text", title=response.model, title_justify="left")
    for entry in response.scores:
        text = " ".join((texts[entry.item_id] or "").split())
        table.add_row(str(entry.rank), f"{entry.score:.4f}", entry.item_id, text[:100])
    output.print(table)
    for warning in response.warnings or []:
        errors.print(f"note: {warning}")


@cli.command()
@click.argument("model", metavar="ID|ID=DIRECTORY|ID=HUB_ID")
@click.option("--pairs", type=click.IntRange(2), default=40, show_default=True, help="Texts to compare")
@click.option("--tolerance", type=float, default=1e-4, show_default=True, help="Largest allowed difference")
@click.option("--offline", is_flag=True, help="Do not use the model hub")
def verify(model: str, pairs: int, tolerance: float, offline: bool) -> None:
    """Compare a model's raw scores with those of the reference library. The exit status is 1 if they differ."""
    models = known_models((model,), None)
    known = models[id_of(model.partition("=")[0], models)]
    from sie_server.engine.storage.source import fetch
    from sie_server.verify.verify import verify as compare

    with errors.status(f"comparing {known.id} with its reference …"):
        directory = fetch(known.source, revision=known.revision, offline=offline)
        report = compare(directory, pairs, known.template)
    click.echo(f"{known.id} against {report.reference}: {report.compared} of {report.pairs} texts, fp32")
    click.echo(f"max |Δ|      {report.max_difference:.3g} (allowed {tolerance:g})")
    click.echo(f"Kendall tau  {report.kendall_tau:.6f}")
    click.echo(f"token ids    {report.first_token_difference or 'equal'}")
    if not report.equal(tolerance):
        raise click.ClickException("the scores or token ids differ")


@cli.command()
@click.option("--models-dir", help="Directory of models: subdirectories with a config.json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
def models(models_dir: str | None, as_json: bool) -> None:
    """List the models that can be served without further configuration."""
    known = known_models((), models_dir)
    rows = [_model_row(name, model) for name, model in sorted(known.items())]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table("id", "outputs", "tokens", "licence", "description")
    for row in rows:
        outputs = ", ".join(row["outputs"] or ["?"])
        details = [str(row[key] or "?") for key in ("max_seq_length", "license", "description")]
        table.add_row(row["id"], outputs, *details)
        for alias in row["aliases"]:
            table.add_row(alias, outputs, *details[:2], f"the same model as {row['id']}")
    output.print(table)


def _model_row(name: str, model: ModelConfig) -> dict[str, Any]:
    entry = model.entry
    embedded = entry is not None and entry.source.startswith("embedded:")
    return {
        "id": name,
        "aliases": list(model.aliases),
        "source": "embedded" if embedded else model.source,
        "outputs": entry.outputs if entry else None,
        "max_seq_length": entry.max_seq_length if entry else None,
        "license": entry.license if entry else None,
        "description": entry.description if entry else None,
    }


def _log_to_stderr(level: str) -> None:
    handler: logging.Handler = logging.StreamHandler()
    if sys.stderr.isatty():
        handler = RichHandler(console=errors, show_path=False)
    handler.setFormatter(OneLine("%(message)s" if sys.stderr.isatty() else PLAIN))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for chatty in ("httpx", "httpx2", "httpcore", "httpcore2", "filelock", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def main() -> None:
    """Run the command line; an error that the user can mend is one line, with exit status 1, or 2 for wrong usage."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        helps = isinstance(error, click.exceptions.NoArgsIsHelpError)  # a group without a command
        if isinstance(error, click.UsageError) and not helps:
            error.ctx = None  # otherwise click prints two usage lines before the error
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except (ConfigError, SIEError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
