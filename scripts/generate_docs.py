"""Write the pages of docs/ that are made from code; `--check` only says whether they are current.

.venv/bin/python scripts/generate_docs.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import msgspec

from sie_server.catalog import CatalogEntry, catalog
from sie_server.config import ServerConfig, is_secret
from sie_server.models.registry import ARCHITECTURES
from sie_server.templates import template_names
from sie_server.wire import Profile

DOCS = Path(__file__).parents[1] / "docs"
HEAD = "<!-- Made by scripts/generate_docs.py; edit {source} instead. -->\n\n"


def configuration() -> str:
    """Every option: flag, variable, key, default, meaning."""
    lines = [
        HEAD.format(source="sie_server/config.py"),
        "# Configuration of `sie-server serve`\n\n",
        "Sources, later ones win: defaults, a TOML file (`--config FILE` or `SIE_CONFIG`), `SIE_*` variables, flags.\n",
        "An unknown key is an error. Lists in a variable are separated by commas. Secrets have no flag: every\n",
        "user of a machine can read its command lines.\n\n",
        "| flag | variable | key in the file | default | meaning |\n|---|---|---|---|---|\n",
    ]
    for field in msgspec.structs.fields(ServerConfig):
        cells = (
            "–" if is_secret(field) else f"`--{field.name.replace('_', '-')}`",
            f"`SIE_{field.name.upper()}`",
            f"`{field.name}`",
            f"`{_toml(field.default)}`" if field.default is not None else "–",
            _description(field),
        )
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def models() -> str:
    """The catalog."""
    lines = [
        HEAD.format(source="the YAML files in sie_server/catalog/models"),
        "# Models known without configuration\n\n",
        "A known model is fetched and loaded when it is first asked for. Any other checkpoint of a served\n",
        "architecture (below the table) is served with `--model ID=DIRECTORY`, `--model ID=HUB_ID` or from\n",
        "`--models-dir`.\n\n",
        "A causal reranker, and one with a classifier that reads a prompt (NVIDIA's Llama, jina-reranker-m0), needs\n",
        "a template: it has one under an id of this list; under any other, put a `sie_reranker.yaml` beside its\n",
        "`config.json` that says `template: NAME`, with\n",
        f"one of {', '.join(f'`{name}`' for name in template_names())}, or holds a template of its own.\n\n",
        "A profile is a set of options under a name, chosen with `options.profile`; a request's own options\n",
        "beat it.\n\n",
        "| id | gives | tokens | licence | |\n|---|---|---|---|---|\n",
    ]
    entries: dict[str, CatalogEntry] = {m.entry.id: m.entry for m in catalog().values() if m.entry}
    for entry in sorted(entries.values(), key=lambda e: e.id.lower()):
        aliases = "".join(f"<br>`{alias}`" for alias in entry.aliases)
        gives = ", ".join(entry.outputs)
        about = entry.description + "".join(f"<br>{_profile(*profile)}" for profile in entry.profiles.items())
        lines.append(
            f"| `{entry.id}`{aliases} | {gives} | {entry.max_seq_length} | {entry.license} | {about} |\n"
        )
    lines += ["\n## Architectures\n\n", "Names as `architectures` of a `config.json` has them:\n\n"]
    lines += [f"- `{name}`\n" for name in sorted(ARCHITECTURES)]
    return "".join(lines)


def _profile(name: str, options: Profile) -> str:
    given = {key: value for key, value in msgspec.structs.asdict(options).items() if value is not None}
    return f"profile `{name}`: {', '.join(f'{key} {value}' for key, value in given.items())}"


def _toml(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _description(field: msgspec.structs.FieldInfo) -> str:
    meta = next((m for m in get_args(field.type) if isinstance(m, msgspec.Meta)), None)
    return (meta.description or "") if meta else ""


def main() -> int:
    """0 when everything is current (or was written), 1 when `--check` found a stale page."""
    stale = False
    for name, text in {"configuration.md": configuration(), "models.md": models()}.items():
        path = DOCS / name
        if "--check" in sys.argv:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                print(f"docs/{name} is stale: run scripts/generate_docs.py")
                stale = True
        else:
            path.write_text(text, encoding="utf-8")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
