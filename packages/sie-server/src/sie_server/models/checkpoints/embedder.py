"""An encoder without a classifier → the head that its other files describe: ours, or that of sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sie_server.catalog.contents import module_without_transformer
from sie_server.errors import shown
from sie_server.models.checkpoints.prompts import read_prompts
from sie_server.models.families.decoders.decoder import DecoderSpec
from sie_server.models.heads.modular import (
    MODULES,
    check_modules,
    is_cross_encoder,
    read_activation,
    read_module,
)
from sie_server.models.heads.pooling import read_pooling
from sie_server.models.heads.sparse import read_m3, read_splade, splade_module
from sie_server.models.settings.check import check_pair_prompt
from sie_server.models.settings.limits import sentence_limit
from sie_server.models.settings.numbers import whole_number
from sie_server.models.spec import (
    BackboneSpec,
    ClassifierSpec,
    EmbeddingSpec,
    ModuleSpec,
    Poolings,
    UnsupportedCheckpoint,
    inside,
    read_json,
)

LIBRARY = "sentence_transformers."  # the package of every module that is read here


def read_embedder(
    directory: Path,
    architecture: str,
    backbone: BackboneSpec,
    config: dict[str, Any],
    prompts: Mapping[str, str],
) -> tuple[EmbeddingSpec | ClassifierSpec, int]:
    """Read an encoder without classifier: our own `sie_scorer.json`, or the sentence-transformers layout."""
    scorer = directory / "sie_scorer.json"
    if scorer.exists():
        recipe = read_json(scorer)
        if missing := {"pooling", "dense_weight", "max_seq_length"} - recipe.keys():
            raise UnsupportedCheckpoint(f"sie_scorer.json lacks {', '.join(sorted(missing))}")
        pooling = read_pooling({"pooling_mode": recipe["pooling"]})
        head = EmbeddingSpec(pooling, True, True, float(recipe["dense_weight"]))
        limit = whole_number(recipe, "max_seq_length", scorer.name) or backbone.max_length
        return head, min(limit, backbone.max_length)
    if (splade := splade_module(directory)) is not None:
        return read_splade(directory, architecture, splade), sentence_limit(directory, backbone)
    if not (directory / "modules.json").exists():
        raise UnsupportedCheckpoint(
            "the checkpoint is an encoder without a head (no classifier, no modules.json), so it can neither score "
            "nor embed; a missing classifier is never initialised at random. If it is an embedding model, add the "
            f"modules of its pooling: SentenceTransformer({str(directory)!r}).save_pretrained({str(directory)!r}) adds "
            "mean pooling"
        )
    return _sentence_transformers_spec(directory, backbone, config, prompts)


def _sentence_transformers_spec(
    directory: Path, backbone: BackboneSpec, config: dict[str, Any], known: Mapping[str, str]
) -> tuple[EmbeddingSpec | ClassifierSpec, int]:
    limit = sentence_limit(directory, backbone)
    pooling, prompted, modules, normalize = _modules(directory)
    prompts = read_prompts(directory, known)
    if prompts.any and not prompted:
        raise UnsupportedCheckpoint(
            "the Pooling module excludes prompts from the average (include_prompt: false), which is not supported"
        )
    check_modules(modules, len(pooling) * backbone.hidden_size)
    if is_cross_encoder(directory, modules):
        check_pair_prompt(directory)
        if isinstance(backbone, DecoderSpec):
            raise UnsupportedCheckpoint(
                "a decoder with a pooled classifier in modules.json is not supported; supported: LogitScore"
            )
        return ClassifierSpec(read_activation(directory, config), pooling, tuple(modules)), limit
    head = EmbeddingSpec(pooling, normalize, modules=tuple(modules), prompts=prompts)
    return read_m3(directory, head), limit


def _modules(directory: Path) -> tuple[Poolings, bool, list[ModuleSpec], bool]:
    """Return the pooling, whether it includes prompts, the modules after it, and whether the vector is normalised.

    Raises:
        UnsupportedCheckpoint: a module is unknown, or its place in the list is not supported.
    """
    pooling: Poolings | None = None
    normalize, prompted = False, True
    modules: list[ModuleSpec] = []
    for module in read_json(directory / "modules.json", list):
        try:
            name, folder = str(module["type"]), inside(directory, module["path"])
        except (KeyError, TypeError) as error:
            raise UnsupportedCheckpoint(
                f"modules.json has an entry without a valid type and path: {error!r}"
            ) from error
        kind = name.rsplit(".", 1)[-1]
        if not name.startswith(LIBRARY):
            raise UnsupportedCheckpoint(
                f"modules.json lists {shown(name)}, a class of the repository's own code, which is never run"
            )
        if kind in ("Transformer", "Dropout"):  # dropout does nothing at inference
            continue
        if kind != "Pooling" and kind not in MODULES and kind != "Normalize":
            named = module_without_transformer([kind])
            raise UnsupportedCheckpoint(
                f"modules.json lists {name!r}, which this version does not support"
                + (f" ({named})" if named else "")
            )
        if (pooling is None) != (kind == "Pooling"):
            place = "before Pooling" if pooling is None else "a second time"
            raise UnsupportedCheckpoint(f"modules.json lists {name!r} {place}, which is not supported")
        if kind == "Pooling":
            pooler = read_json(folder / "config.json")
            pooling, prompted = read_pooling(pooler), pooler.get("include_prompt", True)
        elif kind == "Normalize":
            normalize = True
        elif normalize:
            raise UnsupportedCheckpoint(
                f"modules.json lists {name!r} after Normalize, which is not supported"
            )
        else:
            modules.append(read_module(directory, kind, str(module["path"])))
    if pooling is None:
        raise UnsupportedCheckpoint("modules.json has no Pooling module")
    return pooling, prompted, modules, normalize
