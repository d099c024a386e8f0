"""`sie-server models`: the models that can be served without further configuration."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import click

from sie_server.catalog import known_models
from sie_server.catalog.entries import ModelConfig
from sie_server.cli.console import print_rows, write_json
from sie_server.config import suggest
from sie_server.errors import shown

HEADER = ("id", "outputs", "tokens", "licence", "description", "aliases")


@click.command()
@click.argument("pattern", required=False)
@click.option("--models-dir", help="Directory of models: subdirectories with a config.json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
def models(pattern: str | None, models_dir: str | None, as_json: bool) -> None:
    """List the models that can be served without further configuration.

    PATTERN is a part of an id or alias, or a pattern with `*`; case does not matter. There is one line per model, with
    columns separated by tabs unless stdout is a terminal: id, outputs, tokens, licence, description, aliases.
    """
    known = known_models((), models_dir)
    found = {name: model for name, model in sorted(known.items()) if _matches(pattern, name, model)}
    if pattern and not found:
        names = [*known, *(alias for model in known.values() for alias in model.aliases)]
        hint = suggest(pattern, names) or "; `sie-server models` lists all"
        raise click.ClickException(f"no model matches {shown(pattern)}{hint}")
    rows = [_model_row(name, model) for name, model in found.items()]
    if as_json:
        write_json(rows)
    else:
        print_rows(HEADER, [_cells(row) for row in rows])


def _matches(pattern: str | None, name: str, model: ModelConfig) -> bool:
    wanted = (pattern or "").lower()
    glob = wanted if "*" in wanted else f"*{wanted.replace('[', '[[]').replace('?', '[?]')}*"
    return any(fnmatchcase(each.lower(), glob) for each in (name, *model.aliases))


def _cells(row: dict[str, Any]) -> list[str]:
    outputs = ",".join(row["outputs"] or ["?"])
    details = [str(row[key] or "?") for key in ("max_seq_length", "license")]
    return [row["id"], outputs, *details, row["description"] or "-", ",".join(row["aliases"]) or "-"]


def _model_row(name: str, model: ModelConfig) -> dict[str, Any]:
    if model.cascade:
        return _cascade_row(name, model)
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


def _cascade_row(name: str, model: ModelConfig) -> dict[str, Any]:
    stages = " → ".join(stage.model for stage in model.stages)
    about = f"not served: {model.problem}" if model.problem else f"cascade: {stages}"
    cascade = model.cascade
    return {
        "id": name,
        "aliases": list(model.aliases),
        "source": None,
        "outputs": ["score"],
        "max_seq_length": None,
        "license": cascade.license if cascade else None,
        "description": f"{cascade.description} ({about})" if cascade and cascade.description else about,
    }
