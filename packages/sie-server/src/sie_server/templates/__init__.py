"""Prompt templates of causal rerankers: one YAML file each in `forms`, validated when read.

A template is a list of *pieces*. Each piece is tokenised separately, as in the model's reference implementation, so no
token crosses the boundary of two pieces. `{query}`, `{document}` and `{instruction}` are placeholders for the texts of
a request; everything else is literal, including control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml

from sie_server.files import read_yaml

if TYPE_CHECKING:
    from msgspec import Meta
else:
    try:
        from msgspec import Meta
    except ModuleNotFoundError:  # the engine runs without it

        def Meta(**_: object) -> None:
            """Take the place of msgspec's rules, which nothing reads then."""


FORMS = Path(__file__).parent / "forms"
NONE = "none"  # in place of a template's name: the texts are read as they are
PLACEHOLDER = re.compile(r"\{(query|document|instruction)\}")
Cut = Literal["shared", "document", "flag-embedding"]
Pieces = Annotated[tuple[str, ...], Meta(min_length=1)]


class TemplateError(ValueError):
    """A template is invalid; the message names it and says why."""


@dataclass(frozen=True)
class RerankTemplate:
    """The prompt of a causal reranker and the tokens of its answer.

    The score is the logit of `positive` at the last position, minus that of `negative` if set. Without `positive` the
    checkpoint's own classifier computes the score.
    """

    name: Annotated[str, Meta(min_length=1)]
    source: Annotated[str, Meta(description="Where the template is documented")]
    pieces: Pieces
    positive: Annotated[
        str | int | None,
        Meta(
            description="Text of exactly one token, or a token id; unset where the checkpoint has its own head"
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
            description="required: the tokenizer's bos token comes first; tokenizer: the tokens that its "
            "post-processor adds at the start and the end, if any"
        ),
    ] = "none"
    score_token: Annotated[int, Meta(ge=0, description="A token id that comes last")] | None = None
    max_seq_length: Annotated[int, Meta(ge=8, description="Default limit in tokens per pair")] | None = None
    cut: Annotated[
        Cut,
        Meta(
            description="How a prompt that is too long is cut. shared: the query to three quarters of the room for "
            "the texts, then the document (mxbai_rerank). document: only the document (sentence-transformers). "
            "flag-embedding: the rule of FlagEmbedding's decoders"
        ),
    ] = "shared"

    @property
    def takes_instruction(self) -> bool:
        return self.instruction_pieces is not None or self.default_instruction is not None

    def pieces_for(self, instruction: str | None) -> tuple[str, ...]:
        """Return the pieces for a request with or without an instruction."""
        return self.instruction_pieces if instruction and self.instruction_pieces else self.pieces


def named_template(name: str) -> RerankTemplate:
    """Return the template `name` of this package.

    Raises:
        TemplateError: the package has no such template.
    """
    path = FORMS / f"{name}.yaml"
    if name not in template_names():
        raise TemplateError(f"no template {name!r}; known templates: {', '.join(template_names())}")
    return parse_template({"name": name, **read_yaml(path)}, own=True)


def template_names() -> list[str]:
    """Return the names of all templates, for messages and documentation."""
    return sorted(path.stem for path in FORMS.glob("*.yaml"))


def read_template_file(path: Path) -> tuple[RerankTemplate | str, str | int | None]:
    """Read a `sie_reranker.yaml`: the NAME of `template: NAME`, or the template that its fields describe.

    The second value is that of `label`, the name or number of the label that a classifier of several scores.

    Raises:
        TemplateError: the file is unreadable or not a valid template.
    """
    try:
        raw = read_yaml(path)
    except RecursionError as error:
        raise TemplateError(f"{path.name} cannot be read: it is nested too deeply") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise TemplateError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise TemplateError(f"{path.name} has no fields; write `template: NAME` or a whole template")
    label = raw.pop("label", None)
    if "template" in raw:
        allowed = {"template", "truncation"} if raw["template"] == NONE else {"template"}
        if set(raw) - allowed:
            raise TemplateError(
                f"{path.name} has `template` and other fields; remove `template` or the others"
            )
        if (name := str(raw["template"])) != NONE:
            named_template(name)
        return name, label
    return parse_template({"name": path.name, "source": path.name, **raw}), label


def parse_template(raw: dict[str, Any], *, own: bool = False) -> RerankTemplate:
    """Return a template after checking its fields. Those of this package, its `own`, can be read without msgspec.

    Raises:
        TemplateError: a field is missing, unknown or invalid, or a placeholder is missing or occurs twice.
    """
    name = raw.get("name")
    if raw.get("negative") is not None and raw.get("positive") is None:
        raise TemplateError(f"template {name!r} has `negative` without `positive`; set both or neither")
    template = _converted(raw, f"template {name!r}", own=own)
    _check_placeholders(template, "pieces", template.pieces, template.default_instruction is not None)
    if template.instruction_pieces is not None:
        _check_placeholders(template, "instruction_pieces", template.instruction_pieces, True)
        if template.default_instruction is not None:
            raise TemplateError(
                f"template {name!r} has both instruction_pieces and default_instruction; remove one of them"
            )
    return template


def _converted(raw: dict[str, Any], where: str, *, own: bool) -> RerankTemplate:
    if unknown := sorted(set(map(str, raw)) - {field.name for field in fields(RerankTemplate)}):
        raise TemplateError(f"{where}: Object contains unknown field `{unknown[0]}`")
    try:
        import msgspec
    except ModuleNotFoundError:
        if own:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
            return RerankTemplate(**values)
        raise TemplateError(
            f"{where} cannot be checked, because msgspec is not installed; install it"
        ) from None
    try:
        return msgspec.convert(raw, RerankTemplate)
    except msgspec.ValidationError as error:
        raise TemplateError(f"{where}: {error}") from None


def _check_placeholders(
    template: RerankTemplate, field: str, pieces: Sequence[str], instruction: bool
) -> None:
    found = [match for piece in pieces for match in PLACEHOLDER.findall(piece)]
    required = ["query", "document"]
    if instruction:
        required.append("instruction")
    elif "instruction" in found:
        raise TemplateError(
            f"template {template.name!r}: {field} has {{instruction}} but the template has no default_instruction"
        )
    for name in required:
        if name not in found:
            raise TemplateError(f"template {template.name!r}: {field} lacks the placeholder {{{name}}}")
        if found.count(name) > 1:
            raise TemplateError(
                f"template {template.name!r}: {field} has the placeholder {{{name}}} more than once"
            )
