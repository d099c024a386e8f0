"""A decoder checkpoint → `ModelSpec`, with the template of its prompts.

The template is the first found of: `sie_reranker.yaml` in the directory (set by the operator), the chat template and
`LogitScore` module of a sentence-transformers repository (set by the author), and the catalog's entry for the model id.
It is never guessed: two rerankers with the same architecture and tokenizer may need different templates, and the wrong
one yields plausible but wrong scores. A checkpoint with a classifier can also be read without a template, as
transformers pairs two texts, if the operator writes `template: none`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sie_server.models.checkpoints.chat_template import NoPair, saved_template
from sie_server.models.families.decoders.layerwise import CostWiseGemmaSpec, MiniCPMSpec
from sie_server.models.heads.modular import read_activation
from sie_server.models.spec import (
    BackboneSpec,
    CausalSpec,
    ClassifierSpec,
    Labels,
    LayerwiseSpec,
    ModelSpec,
    PromptedClassifierSpec,
    UnsupportedCheckpoint,
)
from sie_server.templates import (
    NONE,
    RerankTemplate,
    TemplateError,
    named_template,
    read_template_file,
    template_names,
)

TEMPLATE_FILE = "sie_reranker.yaml"
NO_TEMPLATE = (
    f"it is read without a prompt, because {TEMPLATE_FILE} or the catalog says `template: {NONE}`; a decoder that was "
    "trained with a prompt ranks close to random without it"
)
LAYERWISE = (MiniCPMSpec, CostWiseGemmaSpec)  # backbones with a head after each of several layers


def read_causal(
    directory: Path,
    config: dict[str, Any],
    backbone: BackboneSpec,
    template: str | None,
    limit: int,
    *,
    own_head: bool,
    padding: int | None = None,
    read_label: Callable[[str | int | None], Labels] | None = None,
) -> ModelSpec:
    """Return the spec of a prompted reranker; `limit` (tokens) applies where its template names none.

    With `own_head` the architecture has a classifier; otherwise the logit of an answer's token is read. `padding` is a
    token that this classifier takes for padding, and `read_label` returns its labels for the `label` of the operator's
    file.

    Raises:
        UnsupportedCheckpoint: there is no template, or it is invalid, or does not fit the head.
    """
    architecture = config["architectures"][0]
    try:
        found, label = _template(directory, config, template, own_head)
        if label is not None and read_label is None:
            raise TemplateError("`label` applies only to sequence classifiers; remove it")
        labels = read_label(label) if read_label else Labels()
        if found is None:
            # several labels: a probability, although the library returns their logits unchanged
            activation = read_activation(directory, config) if labels.count == 1 else "sigmoid"
            head = ClassifierSpec(activation, labels=labels)
            return ModelSpec(architecture, backbone, head, limit, warning=NO_TEMPLATE)
        _check_answer(found, own_head or isinstance(backbone, LAYERWISE))
    except TemplateError as error:
        raise UnsupportedCheckpoint(str(error)) from error
    limit = min(found.max_seq_length or limit, backbone.max_length)
    return ModelSpec(architecture, backbone, _head(backbone, found, own_head, padding, labels), limit)


def _head(
    backbone: BackboneSpec, template: RerankTemplate, own_head: bool, padding: int | None, labels: Labels
) -> CausalSpec:
    if isinstance(backbone, LAYERWISE):
        return LayerwiseSpec(
            template.activation,
            template=template,
            cutoff_layers=backbone.cutoff_layers,
            heads=backbone.heads,
        )
    if own_head:
        return PromptedClassifierSpec(template.activation, labels=labels, template=template, padding=padding)
    return CausalSpec(template.activation, template=template)


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


def _template(
    directory: Path, config: dict[str, Any], cataloged: str | None, own_head: bool
) -> tuple[RerankTemplate | None, str | int | None]:
    """Return the checkpoint's template, None if it is read without one, and the label of the operator's file."""
    found: RerankTemplate | str | None = cataloged
    label = None
    reason = ""
    if (directory / TEMPLATE_FILE).exists():
        found, label = read_template_file(directory / TEMPLATE_FILE)
    else:
        try:
            found = saved_template(directory, config, own_head=own_head) or found
        except NoPair as error:  # the chat template of the decoder before it became a reranker
            reason = f" ({error})"
    if found is None:
        raise TemplateError(_missing(own_head) + reason)
    if isinstance(found, RerankTemplate):
        return found, label
    if found == NONE:
        if own_head:
            return None, label
        raise TemplateError(
            f"`template: {NONE}` needs a checkpoint with a classifier; the score of this one is the logit of a token, "
            "which only a template names"
        )
    named = named_template(found)
    # the conversion to a classifier has put the rows of both answers into its weights
    return (replace(named, positive=None, negative=None) if own_head else named), label


def _missing(own_head: bool) -> str:
    kind = "a decoder with a classifier, but" if own_head else "a decoder"
    none = (
        f"; to read both texts without a prompt, as transformers pairs them, write `template: {NONE}`"
        if own_head
        else ""
    )
    return (
        f"the checkpoint is {kind} without a prompt template; serve it under its catalog id (--model ID=DIRECTORY), "
        f"or add a {TEMPLATE_FILE} next to config.json with a whole template or `template: NAME`, where NAME is one of "
        f"{', '.join(template_names())}{none}"
    )
