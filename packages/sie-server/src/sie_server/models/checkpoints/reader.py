"""A checkpoint directory → `ModelSpec`: its own configuration files are read, and nothing is guessed.

`read_spec` is called once per load (`engine.engine`); all later steps use the frozen result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sie_server.catalog.contents import module_without_transformer
from sie_server.models.checkpoints.architecture import check_embedder, is_headless, read_architecture
from sie_server.models.checkpoints.causal import TEMPLATE_FILE, read_causal
from sie_server.models.checkpoints.colbert import read_colbert
from sie_server.models.checkpoints.listwise import read_listwise
from sie_server.models.checkpoints.numbers import check_backbone, check_numbers, whole_number
from sie_server.models.checkpoints.prompts import read_prompts
from sie_server.models.families.decoders.decoder import DecoderSpec
from sie_server.models.families.encoders.compat import CompatSpec
from sie_server.models.heads.labels import read_labels
from sie_server.models.heads.modular import (
    MODULES,
    check_modules,
    is_cross_encoder,
    read_activation,
    read_module,
)
from sie_server.models.heads.pooling import read_pooling
from sie_server.models.heads.sparse import read_m3, read_splade, splade_module
from sie_server.models.registry import (
    COMPAT,
    COMPAT_DECODER,
    COMPAT_ENCODER,
    SCORE_HEADS,
    family_of,
)
from sie_server.models.settings.check import check_pair_prompt, check_settings
from sie_server.models.settings.quantised import check_unquantised
from sie_server.models.settings.sentence import sentence_file, sentence_settings
from sie_server.models.spec import (
    BackboneSpec,
    ClassifierSpec,
    EmbeddingSpec,
    ModelSpec,
    ModuleSpec,
    Poolings,
    PromptedClassifierSpec,
    UnsupportedCheckpoint,
    inside,
    read_json,
)
from sie_server.templates import TemplateError
from sie_server.templates.pair_settings import PairSettings, Truncation, read_pair_settings


def read_spec(
    directory: Path,
    template: str | None = None,
    prompts: Mapping[str, str] = MappingProxyType({}),
    truncation: Truncation | None = None,
    label: str | int | None = None,
) -> ModelSpec:
    """Read a checkpoint directory's configuration.

    `template` names the template of a causal reranker, `prompts` are those of an embedding model, `truncation` is how a
    cross-encoder cuts its pairs, and `label` is the label that a classifier of several scores. All apply where the
    directory has none.

    Raises:
        UnsupportedCheckpoint: a file is missing or unreadable, or describes an unsupported model.
    """
    try:
        spec = _read(directory, template, prompts, label)
        check_settings(directory, native=not isinstance(spec.backbone, CompatSpec))
        _check_label(spec, directory, label)
        return _with_truncation(spec, directory, truncation)
    except UnsupportedCheckpoint:
        raise
    except (TypeError, AttributeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        kind = type(error).__name__
        raise UnsupportedCheckpoint(
            f"config.json, or another .json file in its directory, has a value of an unexpected type ({kind}: {error})"
        ) from error


def _read(
    directory: Path, template: str | None, prompts: Mapping[str, str], label: str | int | None
) -> ModelSpec:
    config = read_json(directory / "config.json")
    check_numbers(config)
    check_unquantised(config)
    architecture = read_architecture(directory, config)
    family = family_of(architecture)
    bare = (bool(family.inner) or family is COMPAT_ENCODER) and is_headless(directory)
    try:
        backbone = family.read(config)
    except KeyError as missing:
        raise UnsupportedCheckpoint(f"config.json lacks {missing.args[0]!r}") from None
    check_backbone(backbone)
    if family.listwise:
        return read_listwise(architecture, backbone, _tokenizer_limit(directory, backbone))
    own_head = family.classifier is not None
    if family.prompted and (own_head or family.unserved or not is_headless(directory)):
        limit = _tokenizer_limit(directory, backbone)
        if architecture in SCORE_HEADS or family is COMPAT_DECODER:
            return _scored_decoder(directory, config, backbone, template, label, limit)
        return read_causal(directory, config, backbone, template, limit, own_head=own_head)
    if isinstance(backbone, DecoderSpec):
        check_embedder(directory, config)
    if not own_head:
        compat = family is COMPAT_ENCODER
        if colbert := read_colbert(directory, architecture, backbone, _sentence_limit(directory, backbone)):
            return ModelSpec(architecture, backbone, *colbert, compat=compat, bare=bare)
        head, limit = _embedding_spec(directory, architecture, backbone, config, prompts)
        return ModelSpec(architecture, backbone, head, limit, compat=compat, bare=bare)
    check_pair_prompt(directory)
    limit = _tokenizer_limit(directory, backbone)
    head = _classifier_spec(directory, config, label)
    return ModelSpec(architecture, backbone, head, limit, compat=family is COMPAT)


def _scored_decoder(
    directory: Path,
    config: dict[str, Any],
    backbone: BackboneSpec,
    template: str | None,
    label: str | int | None,
    limit: int,
) -> ModelSpec:
    """Read a decoder saved as a classifier by transformers, which may have several labels."""
    spec = read_causal(
        directory,
        config,
        backbone,
        template,
        limit,
        own_head=True,
        padding=config.get("pad_token_id"),
        read_label=lambda own: read_labels(config, label if own is None else own, TEMPLATE_FILE),
    )
    return replace(spec, compat=spec.architecture not in SCORE_HEADS)


def _check_label(spec: ModelSpec, directory: Path, label: str | int | None) -> None:
    """Refuse a label for a model that has none."""
    pairs, modules = type(spec.head) is ClassifierSpec, getattr(spec.head, "modules", ())
    scored = isinstance(spec.head, PromptedClassifierSpec) and (
        spec.compat or spec.architecture in SCORE_HEADS
    )
    if scored or (pairs and not modules):
        return
    named = _pair_settings(directory).label if pairs else None
    if label is not None or named is not None:
        raise UnsupportedCheckpoint("`label` applies only to sequence classifiers; remove it")


def _with_truncation(spec: ModelSpec, directory: Path, known: Truncation | None) -> ModelSpec:
    """Return the spec with the first found of: the operator's file, the catalog's rule, the library's default."""
    if type(spec.head) is not ClassifierSpec:
        if known:
            raise UnsupportedCheckpoint(
                "`truncation` applies only to cross-encoders that read query and document as a pair; remove it"
            )
        return spec
    named = _pair_settings(directory).truncation or known
    return replace(spec, head=replace(spec.head, truncation=named)) if named else spec


def _classifier_spec(directory: Path, config: dict[str, Any], label: str | int | None) -> ClassifierSpec:
    own = _pair_settings(directory).label
    labels = read_labels(config, label if own is None else own, TEMPLATE_FILE)
    # a probability, although the library returns the logits of several labels unchanged
    activation = read_activation(directory, config) if labels.count == 1 else "sigmoid"
    return ClassifierSpec(activation, labels=labels)


def _pair_settings(directory: Path) -> PairSettings:
    """Return the settings in the operator's file in the directory."""
    try:
        return read_pair_settings(directory / TEMPLATE_FILE)
    except TemplateError as error:
        raise UnsupportedCheckpoint(str(error)) from error


def _tokenizer_limit(directory: Path, backbone: BackboneSpec) -> int:
    """Return the limit in tokens per pair: the tokenizer's if it has one, but no more than the positions."""
    path = directory / "tokenizer_config.json"
    settings = read_json(path) if path.exists() else {}
    named = settings.get("model_max_length", settings.get("max_len"))
    # transformers writes int(1e30) for "no limit"
    if isinstance(named, int | float) and not isinstance(named, bool) and 1 <= named < 1e9:
        return min(int(named), backbone.max_length)
    return backbone.max_length


def _embedding_spec(
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
        return read_splade(directory, architecture, splade), _sentence_limit(directory, backbone)
    if not (directory / "modules.json").exists():
        raise UnsupportedCheckpoint(
            "the checkpoint is an encoder without a head (no classifier, no modules.json), so it can neither score "
            "nor embed; a missing classifier is never initialised at random"
        )
    return _sentence_transformers_spec(directory, backbone, config, prompts)


def _sentence_transformers_spec(
    directory: Path, backbone: BackboneSpec, config: dict[str, Any], known: Mapping[str, str]
) -> tuple[EmbeddingSpec | ClassifierSpec, int]:
    limit = _sentence_limit(directory, backbone)
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
        if kind == "Pooling":
            pooler = read_json(folder / "config.json")
            pooling, prompted = read_pooling(pooler), pooler.get("include_prompt", True)
        elif kind == "Normalize":
            normalize = True
        elif kind in MODULES:
            if normalize:
                raise UnsupportedCheckpoint(
                    f"modules.json lists {name!r} after Normalize, which is not supported"
                )
            modules.append(read_module(directory, kind, str(module["path"])))
        elif kind not in ("Transformer", "Dropout"):  # dropout does nothing at inference
            named = module_without_transformer([kind])
            raise UnsupportedCheckpoint(
                f"modules.json lists {name!r}, which this version does not support"
                + (f" ({named})" if named else "")
            )
    if pooling is None:
        raise UnsupportedCheckpoint("modules.json has no Pooling module")
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


def _sentence_limit(directory: Path, backbone: BackboneSpec) -> int:
    # from version 6 on the limit is only in the tokenizer's configuration
    limit = whole_number(sentence_settings(directory), "max_seq_length", sentence_file(directory))
    return min(limit or _tokenizer_limit(directory, backbone), backbone.max_length)
