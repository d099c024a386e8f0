"""The options, instruction and adapter of a request, over those of its profile. Every error names the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

from sie_server.catalog import Calibration, profile_names
from sie_server.errors import InvalidInput, reason_at, shown
from sie_server.wire import Options, Profile

Route = Literal["score", "inspect", "encode"]
NAMED = 10  # number of unknown options that warnings name

# Options with a meaning on some routes only. The other routes report them like unknown ones.
SCORES = frozenset(
    {
        "top_n",
        "normalize",
        "score_mode",
        "score_weights",
        "return_documents",
        "return_logits",
        "long_document",
        "max_document_tokens",
        "chunk_overlap",
        "aggregate",
        "cutoff_layer",
        "compress_ratio",
    }
)
VECTORS = frozenset({"is_query", "dimensions"})
TOKENS = frozenset({"token_scores"})
ELSEWHERE = {"score": VECTORS | TOKENS, "inspect": VECTORS, "encode": SCORES | TOKENS}


@dataclass(frozen=True)
class Instruction:
    """The description of relevance for models that take one. An empty text counts as none."""

    text: str | None
    path: str | None  # of the field that it comes from; None: the profile, or no instruction


@dataclass(frozen=True)
class ParsedOptions:
    """The checked options of a request."""

    known: Options
    instruction: Instruction
    adapter: str | None  # LoRA adapter, from the model's id or from an option
    warnings: list[str]  # options and instructions that have no effect
    calibration: Calibration | None = None  # of the model

    def for_reading(self) -> ParsedOptions:
        """The same without the options about scores, which change nothing that a model reads."""
        known = msgspec.structs.replace(
            self.known, normalize=None, return_logits=None, score_mode=None, score_weights=None
        )
        return replace(self, known=known)

    def for_replay(self) -> ParsedOptions:
        """The same without the options that change when a caller gets which documents, not how they are scored."""
        known = msgspec.structs.replace(self.known, top_n=None, deadline_ms=None, priority=None)
        return replace(self, known=known)


def parse_options(
    raw: dict[str, Any] | None,
    path: str,
    route: Route,
    profiles: Mapping[str, Profile],
    *,
    instruction: str | None = None,
    adapter_in_id: str | None = None,
) -> ParsedOptions:
    """Check the options of the object at `path`. An option without a value comes from the profile, or from `default`.

    The instruction field of the request has precedence over `options.instruction`, which has precedence over the
    profile.

    Raises:
        InvalidInput: an option has a wrong type or value, the profile does not exist, or two adapters are named.
    """
    raw = raw or {}
    at = f"{path}.options"
    try:
        known = msgspec.convert(raw, Options)
    except msgspec.ValidationError as error:
        raise InvalidInput(reason_at(error, at)) from None
    profile = _profile(known, at, profiles)
    other = ELSEWHERE[route]
    warnings = _ignored(raw, route, other)
    if instruction and known.instruction and instruction != known.instruction:
        warnings.append("`instruction` differs from `options.instruction`, which was ignored")
    complete = _with_defaults(known, profile, other)
    return ParsedOptions(
        complete,
        _instruction(instruction, known, profile, path),
        _adapter(adapter_in_id, complete, at),
        warnings,
    )


def _profile(known: Options, path: str, profiles: Mapping[str, Profile]) -> Profile:
    name = known.profile or "default"
    if name != "default" and name not in profiles:
        raise InvalidInput(
            f"this model has no profile {shown(name)}; it has {', '.join(profile_names(profiles))} "
            f"- at `{path}.profile`"
        )
    return profiles.get(name, Profile())


def _ignored(raw: dict[str, Any], route: Route, other: frozenset[str]) -> list[str]:
    unknown = sorted(set(raw) - set(Options.__struct_fields__))
    misplaced = sorted(name for name, value in raw.items() if name in other and value is not None)
    warnings = [f"option {shown(name)} is unknown and was ignored" for name in unknown[:NAMED]]
    if len(unknown) > NAMED:
        warnings.append(f"{len(unknown) - NAMED} more unknown options were ignored")
    return warnings + [f"option {name!r} has no effect on {route} and was ignored" for name in misplaced]


def _with_defaults(known: Options, profile: Profile, other: frozenset[str]) -> Options:
    """Fill options without a value from the profile, except those of the other route."""
    defaults = {
        name: value
        for name, value in msgspec.structs.asdict(profile).items()
        if name not in other | {"instruction"} and getattr(known, name) is None
    }
    return msgspec.structs.replace(known, **defaults)


def _instruction(field: str | None, known: Options, profile: Profile, path: str) -> Instruction:
    if field:
        return Instruction(field, f"{path}.instruction")
    if known.instruction:
        return Instruction(known.instruction, f"{path}.options.instruction")
    return Instruction(profile.instruction or None, None)


def refuse_instruction(instruction: Instruction) -> None:
    """Refuse an instruction for a model that takes none, because ignoring it would return other scores than meant."""
    if instruction.path:
        raise InvalidInput(
            f"this model takes no instruction; put it into the query's text - at `{instruction.path}`"
        )


def _adapter(in_id: str | None, known: Options, path: str) -> str | None:
    """Return the LoRA adapter that the model's id or an option names."""
    given = {"the model's id": in_id, "lora": known.lora, "lora_id": known.lora_id}
    # An empty name is a name that no adapter has. It never means the base model.
    names = {where: name for where, name in given.items() if name is not None}
    if len(set(names.values())) > 1:
        said = " and ".join(f"{where} {shown(name)}" for where, name in names.items())
        raise InvalidInput(f"{said} name different adapters; give one - at `{path}.lora`")
    return next(iter(names.values()), None)
