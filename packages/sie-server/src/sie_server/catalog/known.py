"""The models that the server knows: the YAML files in `models/`, the values of `--model`, and `--models-dir`.

A known model is fetched and loaded on first use. Unknown ids are never fetched, so a remote caller cannot make the
server download arbitrary repositories.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from sie_server.catalog.cascades import checked
from sie_server.catalog.directory import ModelsDirectory, packaged
from sie_server.catalog.entries import ModelConfig, id_of
from sie_server.catalog.revisions import is_path, split_revision
from sie_server.config import ConfigError


def known_models(
    configured: Iterable[str], models_dir: str | None, *, report: bool = True
) -> dict[str, ModelConfig]:
    """Return all models by id. `configured` has the values of `--model`, which are loaded at start.

    Files in the models directory that are ignored are logged, unless `report` is False.

    Raises:
        ConfigError: an id that is neither in the catalog nor has a source, an id whose file cannot be used, a named
            cascade that cannot work, or an unreadable models directory.
    """
    configured = tuple(configured)
    try:
        directory = ModelsDirectory(models_dir, report=report) if models_dir else None
        found = directory.scan() if directory else {}
    except OSError as error:
        raise ConfigError(f"--models-dir {models_dir}: {error.strerror or error}") from None
    if directory:
        directory.refuse_unusable(configured)
    models = with_configured(configured, found)
    for model in models.values():
        if model.preload and model.problem:
            raise ConfigError(f"--model {model.id!r}: {model.problem}")
    return models


def named_model(value: str) -> ModelConfig:
    """Return the model that one value of `--model` names. Raises as `known_models`."""
    return next(iter(known_models((value,), None).values()))


def with_configured(
    configured: Iterable[str], found: Mapping[str, ModelConfig], first: Iterable[str] = ()
) -> dict[str, ModelConfig]:
    """Return all models by id, given the models `found` in the directory now and the ids that were there `first`.

    The `configured` models come first, in their order.

    The ids found at start stay reserved for the directory. If such a model leaves it, the id is unknown and never
    falls back to other weights, such as the catalog entry or a hub repository of the same id.
    """
    packaged = catalog()
    known = {**packaged, **{name: _as_known(model, packaged) for name, model in found.items()}}
    gone = set(first) - set(found)
    models = {name: model for name, model in known.items() if name not in gone}
    seen: dict[str, str] = {}
    for value in configured:
        given, separator, source = value.partition("=")
        if not given or (separator and not source):
            raise ConfigError(
                f"--model {value!r}: expected ID, ID=DIRECTORY or ID=HUB_ID; a hub id may end in @REVISION"
            )
        revision = None
        if separator:
            source, revision = split_revision(source)
        elif (
            given not in gone and id_of(given, models) not in models
        ):  # ids of a models directory may have an @
            given, revision = split_revision(given)
        # a directory that has left keeps its id reserved, even where the catalog has the id as an alias
        name = given if given in gone else id_of(given, models)
        if (separator or revision) and name in models and models[name].cascade:
            raise ConfigError(
                f"--model {value!r}: {name!r} is a cascade, which has no source and no revision; give only its id, "
                "and name the sources of its stages with a --model each"
            )
        if (other := seen.setdefault(name, value)) != value:
            raise ConfigError(
                f"--model {value!r}: --model {other!r} names the same model; remove one of them"
            )
        if separator:
            # a known id keeps its limits, template, prompts and profiles for every source of its weights
            as_known = models.get(name) or known.get(name) or ModelConfig(name, source)
            models[name] = replace(as_known, source=source, revision=revision, preload=True)
        elif name not in gone:
            # an operator may name any hub id; ids in requests must be known already
            model = models.get(name, ModelConfig(name, name))
            if revision and is_path(model.source):
                raise ConfigError(
                    f"--model {value!r}: {name!r} is served from a directory, which has no revisions; remove "
                    f"@{revision}, or name the hub id: --model {name}=HUB_ID@{revision}"
                )
            models[name] = replace(model, revision=revision or model.revision, preload=True)
    return checked({name: models[name] for name in seen if name in models} | models)


def _as_known(model: ModelConfig, packaged: Mapping[str, ModelConfig]) -> ModelConfig:
    """Return a model of the directory with the limits, template and rules that the catalog has for its id."""
    if model.entry or model.id not in packaged:
        return model
    return replace(packaged[model.id], source=model.source, revision=None, stamp=model.stamp)


def catalog() -> dict[str, ModelConfig]:
    """Return the models of this package's YAML files by id."""
    return dict(packaged())
