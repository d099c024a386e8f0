"""A decoder checkpoint → `ModelSpec`: which template it is asked with.

In this order, the first that says something: `sie_reranker.yaml` in the directory (the operator's word), the chat
template and `LogitScore` module of a sentence-transformers repository (the author's), then what the catalog says of the
model's id. Nothing is recognised by its looks: two rerankers of one architecture and one
tokenizer may want different templates, and the wrong one gives scores that only look right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sie_server.models.checkpoints.chat_template import logit_score_template
from sie_server.models.families.decoders.layerwise import CostWiseGemmaSpec, MiniCPMSpec
from sie_server.models.spec import (
    BackboneSpec,
    CausalSpec,
    LayerwiseSpec,
    ModelSpec,
    PromptedClassifierSpec,
    UnsupportedCheckpoint,
)
from sie_server.templates import (
    RerankTemplate,
    TemplateError,
    named_template,
    read_template_file,
    template_names,
)

TEMPLATE_FILE = "sie_reranker.yaml"
LAYERWISE = (MiniCPMSpec, CostWiseGemmaSpec)  # have a head after each of several layers


def read_causal(
    directory: Path,
    config: dict[str, Any],
    backbone: BackboneSpec,
    template: str | None,
    limit: int,
    *,
    own_head: bool,
) -> ModelSpec:
    """The spec of a prompted reranker; `limit` (tokens) holds where its template names none.

    With `own_head` its architecture has a classifier, else an answer's token is read.

    Raises:
        UnsupportedCheckpoint: no template, or one that cannot be served, or not with this head.
    """
    try:
        found = _template(directory, config, template)
        _check_answer(found, own_head or isinstance(backbone, LAYERWISE))
    except TemplateError as error:
        raise UnsupportedCheckpoint(str(error)) from error
    limit = min(found.max_seq_length or limit, backbone.max_length)
    return ModelSpec(config["architectures"][0], backbone, _head(backbone, found, own_head), limit)


def _head(backbone: BackboneSpec, template: RerankTemplate, own_head: bool) -> CausalSpec:
    if isinstance(backbone, LAYERWISE):
        return LayerwiseSpec(
            template.activation,
            template=template,
            cutoff_layers=backbone.cutoff_layers,
            heads=backbone.heads,
        )
    head = PromptedClassifierSpec if own_head else CausalSpec
    return head(template.activation, template=template)


def _check_answer(template: RerankTemplate, own_head: bool) -> None:
    if own_head and template.positive is not None:
        raise TemplateError(
            f"template {template.name!r} reads the token {template.positive!r}, but this architecture scores with "
            "a head of its own; leave `positive` out"
        )
    if not own_head and template.positive is None:
        raise TemplateError(f"template {template.name!r} names no `positive` token, whose logit is the score")


def _template(directory: Path, config: dict[str, Any], named: str | None) -> RerankTemplate:
    if (directory / TEMPLATE_FILE).exists():
        return read_template_file(directory / TEMPLATE_FILE)
    saved = logit_score_template(directory, config)
    if saved:
        return saved
    if named:
        return named_template(named)
    raise TemplateError(
        "the checkpoint is a decoder, and nothing says how it is to be asked; serve it under its catalog id "
        f"(--model ID=DIRECTORY), or put a {TEMPLATE_FILE} beside config.json that holds `template: NAME` with one "
        f"of {', '.join(template_names())}, or a template of its own"
    )
