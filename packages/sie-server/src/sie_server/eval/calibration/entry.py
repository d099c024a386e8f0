"""The entry of a calibrated model in the models directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import yaml

from sie_server.catalog import Calibration, CatalogEntry, ModelConfig
from sie_server.catalog.entries import model_of
from sie_server.eval.calibration.pairs import Pairs
from sie_server.files import expanded, read_yaml
from sie_server.offline.errors import OfflineError
from sie_server.wire import ModelInfo, Profile


def entry_of(
    model: ModelConfig, info: ModelInfo, profile: str, calibration: Calibration, models_dir: str | None
) -> CatalogEntry:
    """Return an entry of the model with the calibration and a profile that uses it."""
    options = msgspec.convert({**calibration.options, "normalize": "calibrated"}, Profile)
    root = expanded(models_dir) if models_dir else None
    known = model.entry or CatalogEntry(
        id=model.id,
        source=model.source,
        license=info.license,
        description=info.description,
        outputs=info.outputs,
        max_seq_length=info.max_sequence_length,
        dims=info.dims,
    )
    return msgspec.structs.replace(
        known,
        source=_source(model, root),
        revision=model.revision,
        calibration=calibration,
        profiles={**known.profiles, profile: options},
    )


def _source(model: ModelConfig, root: Path | None) -> str:
    """Return the source that leads to the model's weights from a file in the models directory."""
    entry = model.entry
    if entry and model.source in (model_of(entry).source, model_of(entry, root).source):
        return entry.source
    path = Path(model.source)
    if not path.is_dir():
        return model.source
    inside = root is not None and path.resolve().is_relative_to(root.resolve())
    return str(path.resolve().relative_to(root.resolve()) if inside and root else path.resolve())


def described(pairs: Pairs, method: str) -> str:
    """Return the note of a calibration."""
    queries = len(set(pairs.query.tolist()))
    return (
        f"{method}, fitted to {len(pairs)} pairs of {queries} queries, {int(pairs.relevant.sum())} relevant"
    )


def as_yaml(entry: CatalogEntry) -> str:
    """Return the file's content, without fields that have their defaults."""
    fields: dict[str, Any] = {}
    for field in msgspec.structs.fields(CatalogEntry):
        value = getattr(entry, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if field.required or value != default:
            fields[field.name] = msgspec.to_builtins(value)
    fields["profiles"] = {
        name: {key: value for key, value in options.items() if value is not None}
        for name, options in fields["profiles"].items()
    }
    text: str = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    return text


def store(entry: CatalogEntry, models_dir: str) -> Path:
    """Write the entry into the models directory, over the file that has the model's id, if there is one.

    Raises:
        OfflineError: the directory cannot be written.
    """
    root = expanded(models_dir)
    path = next((path for path in sorted(root.glob("*.yaml")) if _id(path) == entry.id), None)
    path = path or root / f"{entry.id.replace('/', '--')}.yaml"
    written = path.with_suffix(".new")
    try:
        written.write_text(as_yaml(entry), encoding="utf-8")
        written.replace(path)  # a server that watches the directory reads it whole
    except OSError as error:
        raise OfflineError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def _id(path: Path) -> str | None:
    try:
        content = read_yaml(path)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    return content.get("id") if isinstance(content, dict) else None
