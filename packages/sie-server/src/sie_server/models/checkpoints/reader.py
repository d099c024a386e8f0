"""A checkpoint directory → `ModelSpec`: its own configuration files are read, and nothing is guessed.

`read_spec` is called once per load (`engine.engine`); all later steps use the frozen result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sie_server.models.checkpoints.architecture import check_embedder, is_headless, read_architecture
from sie_server.models.checkpoints.causal import TEMPLATE_FILE, read_causal
from sie_server.models.checkpoints.colbert import read_colbert
from sie_server.models.checkpoints.embedder import read_embedder
from sie_server.models.checkpoints.listwise import read_listwise
from sie_server.models.families.decoders.decoder import DecoderSpec
from sie_server.models.families.encoders.compat import CompatSpec
from sie_server.models.heads.labels import read_labels
from sie_server.models.heads.modular import read_activation
from sie_server.models.registry import (
    COMPAT,
    COMPAT_DECODER,
    COMPAT_ENCODER,
    SCORE_HEADS,
    family_of,
)
from sie_server.models.settings.check import check_pair_prompt, check_settings
from sie_server.models.settings.limits import sentence_limit, tokenizer_limit
from sie_server.models.settings.numbers import check_backbone, check_numbers
from sie_server.models.settings.quantised import check_unquantised
from sie_server.models.settings.sentence import check_place
from sie_server.models.spec import (
    BackboneSpec,
    ClassifierSpec,
    ModelSpec,
    PromptedClassifierSpec,
    UnsupportedCheckpoint,
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
    check_place(directory)
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
        return read_listwise(architecture, backbone, tokenizer_limit(directory, backbone))
    own_head = family.classifier is not None
    if family.prompted and (own_head or family.unserved or not is_headless(directory)):
        limit = sentence_limit(directory, backbone)
        if architecture in SCORE_HEADS or family is COMPAT_DECODER:
            return _scored_decoder(directory, config, backbone, template, label, limit)
        return read_causal(directory, config, backbone, template, limit, own_head=own_head)
    if isinstance(backbone, DecoderSpec):
        check_embedder(directory, config)
    if not own_head:
        compat = family is COMPAT_ENCODER
        if colbert := read_colbert(directory, architecture, backbone, sentence_limit(directory, backbone)):
            return ModelSpec(architecture, backbone, *colbert, compat=compat, bare=bare)
        head, limit = read_embedder(directory, architecture, backbone, config, prompts)
        return ModelSpec(architecture, backbone, head, limit, compat=compat, bare=bare)
    check_pair_prompt(directory)
    limit = sentence_limit(directory, backbone)
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
