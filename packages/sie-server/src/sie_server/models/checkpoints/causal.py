"""A decoder checkpoint → `ModelSpec`, with the template of its prompts.

The template is the first found of: `sie_reranker.yaml` in the directory (set by the operator), the chat template and
`LogitScore` module of a sentence-transformers repository (set by the author), and the catalog's entry for the model id.
It is never guessed: two rerankers with the same architecture and tokenizer may need different templates, and the wrong
one yields plausible but wrong scores.
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
LAYERWISE = (MiniCPMSpec, CostWiseGemmaSpec)  # backbones with a head after each of several layers


def read_causal(
    directory: Path,
    config: dict[str, Any],
    backbone: BackboneSpec,
    template: str | None,
    limit: int,
    *,
    own_head: bool,
) -> ModelSpec:
    """Return the spec of a prompted reranker; `limit` (tokens) applies where its template names none.

    With `own_head` the architecture has a classifier; otherwise the logit of an answer's token is read.

    Raises:
        UnsupportedCheckpoint: there is no template, or it is invalid, or does not fit the head.
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
            f"template {template.name!r} has `positive` {template.positive!r}, but this architecture has its own "
            "head for the score; remove `positive`"
        )
    if not own_head and template.positive is None:
        raise TemplateError(
            f"template {template.name!r} has no `positive`; set it to the token whose logit is the score"
        )


def _template(directory: Path, config: dict[str, Any], named: str | None) -> RerankTemplate:
    if (directory / TEMPLATE_FILE).exists():
        return read_template_file(directory / TEMPLATE_FILE)
    saved = logit_score_template(directory, config)
    if saved:
        return saved
    if named:
        return named_template(named)
    raise TemplateError(
        "the checkpoint is a decoder without a prompt template; serve it under its catalog id "
        f"(--model ID=DIRECTORY), or add a {TEMPLATE_FILE} next to config.json with a whole template or "
        f"`template: NAME`, where NAME is one of {', '.join(template_names())}"
    )
