"""Prompt templates of causal rerankers, as data: one YAML file each in this directory, validated when read.

A template is a list of *pieces*. Each piece is tokenised by itself, as the model's reference implementation does it,
so where a piece ends decides which characters may become one token. `{query}`, `{document}` and `{instruction}` stand
for the caller's texts; everything else is literal, control tokens included.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta, Struct

FORMS = Path(__file__).parent / "forms"
PLACEHOLDER = re.compile(r"\{(query|document|instruction)\}")
Pieces = Annotated[tuple[str, ...], Meta(min_length=1)]


class TemplateError(ValueError):
    """A template that cannot be served; the message names it and says why."""


class RerankTemplate(Struct, frozen=True, forbid_unknown_fields=True):
    """How a reranker without a format of its own is asked, and where its answer is read.

    The score is the logit of `positive` at the last position, less that of `negative` if there is one; without
    `positive` it comes from the checkpoint's own classifier.
    """

    name: Annotated[str, Meta(min_length=1)]
    source: Annotated[str, Meta(description="Where the form is documented")]
    pieces: Pieces
    positive: Annotated[
        str | int | None,
        Meta(
            description="Text of exactly one token, or a token id; none where the checkpoint has a head of its own"
        ),
    ] = None
    negative: str | int | None = None
    activation: Literal["identity", "sigmoid"] = "identity"
    instruction_pieces: Annotated[
        Pieces | None, Meta(description="Used instead of `pieces` when a request has an instruction")
    ] = None
    default_instruction: str | None = None
    bos: Annotated[
        Literal["none", "required", "tokenizer"],
        Meta(
            description="required: the tokenizer's bos token comes first; tokenizer: what its post-processor "
            "puts first and last, if anything"
        ),
    ] = "none"
    score_token: Annotated[int, Meta(ge=0, description="A token id that comes last")] | None = None
    max_seq_length: Annotated[int, Meta(ge=8, description="Default limit, tokens per pair")] | None = None

    @property
    def takes_instruction(self) -> bool:
        return self.instruction_pieces is not None or self.default_instruction is not None

    def pieces_for(self, instruction: str | None) -> tuple[str, ...]:
        """The form for a request with or without an instruction of its own."""
        return self.instruction_pieces if instruction and self.instruction_pieces else self.pieces


def named_template(name: str) -> RerankTemplate:
    """The template `name` of this package.

    Raises:
        TemplateError: there is none of that name.
    """
    path = FORMS / f"{name}.yaml"
    if name not in template_names():
        raise TemplateError(f"there is no template {name!r}; there are {', '.join(template_names())}")
    return parse_template({"name": name, **yaml.safe_load(path.read_text(encoding="utf-8"))})


def template_names() -> list[str]:
    """For messages and documentation."""
    return sorted(path.stem for path in FORMS.glob("*.yaml"))


def read_template_file(path: Path) -> RerankTemplate:
    """A `sie_reranker.yaml`: `template: NAME` for one of ours, else the fields of a template.

    Raises:
        TemplateError: unreadable, or not a template that can be served.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise TemplateError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise TemplateError(f"{path.name} holds no fields; write `template: NAME` or a whole template")
    if "template" in raw:
        if len(raw) > 1:
            raise TemplateError(f"{path.name} has `template` and other fields; it takes one or the others")
        return named_template(str(raw["template"]))
    return parse_template({"name": path.name, "source": path.name, **raw})


def parse_template(raw: dict[str, Any]) -> RerankTemplate:
    """Check the fields of a template.

    Raises:
        TemplateError: a missing, unknown or wrong field, or a placeholder that is missing or stands twice.
    """
    name = raw.get("name")
    if raw.get("negative") is not None and raw.get("positive") is None:
        raise TemplateError(f"template {name!r} has `negative` without `positive`")
    try:
        template = msgspec.convert(raw, RerankTemplate)
    except msgspec.ValidationError as error:
        raise TemplateError(f"template {name!r}: {error}") from None
    _check_placeholders(template, "pieces", template.pieces, template.default_instruction is not None)
    if template.instruction_pieces is not None:
        _check_placeholders(template, "instruction_pieces", template.instruction_pieces, True)
        if template.default_instruction is not None:
            raise TemplateError(
                f"template {name!r} has both instruction_pieces and default_instruction; it takes one"
            )
    return template


def _check_placeholders(
    template: RerankTemplate, field: str, pieces: Sequence[str], instruction: bool
) -> None:
    found = [match for piece in pieces for match in PLACEHOLDER.findall(piece)]
    for wanted in ["query", "document"] + ["instruction"] * instruction:
        if found.count(wanted) != 1:
            how = "lacks the placeholder" if wanted not in found else "has more than once"
            raise TemplateError(f"template {template.name!r}: {field} {how} {{{wanted}}}")
    if not instruction and "instruction" in found:
        raise TemplateError(
            f"template {template.name!r}: {field} has {{instruction}} but there is no default_instruction"
        )
