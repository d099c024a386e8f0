"""What must hold of a request beyond its types; every complaint names the field and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from sie_server.engine.job import Job
from sie_server.errors import InvalidInput
from sie_server.wire import Item, Options, Profile


@dataclass(frozen=True)
class ParsedOptions:
    """A request's options over those of its profile, and a warning for each name that is ignored.

    A profile's instruction stays apart: the request's own field beats both.
    """

    known: Options
    warnings: list[str]
    profile_instruction: str | None = None
    adapter: str | None = None  # LoRA adapter, wherever it was named


# options that mean something on one route only; on the other they are reported like unknown ones
ONLY = {
    "score": {
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
    },
    "encode": {"is_query", "dimensions"},
}


def parse_options(
    raw: dict[str, Any] | None,
    path: str,
    route: Literal["score", "encode"],
    profiles: Mapping[str, Profile],
) -> ParsedOptions:
    """Check the options at `path`; what they leave open is as in the profile they name, or in `default`.

    Raises:
        InvalidInput: a known option of a wrong type or value, or a profile that does not exist.
    """
    raw = raw or {}
    try:
        known = msgspec.convert(raw, Options)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$")
        raise InvalidInput(f"{reason} - at `{path}{where or '`'}") from None
    name = known.profile or "default"
    if name != "default" and name not in profiles:
        raise InvalidInput(
            f"this model has no profile {name!r}; it has {', '.join(profile_names(profiles))} - at `{path}.profile`"
        )
    other = ONLY["encode" if route == "score" else "score"]
    unknown = sorted(set(raw) - set(Options.__struct_fields__))
    misplaced = sorted(name for name, value in raw.items() if name in other and value is not None)
    preset = profiles.get(name, Profile())
    return ParsedOptions(
        _over(known, preset, other),
        [f"option {name!r} is unknown and was ignored" for name in unknown]
        + [f"option {name!r} has no effect on {route} and was ignored" for name in misplaced],
        preset.instruction,
    )


def _over(known: Options, preset: Profile, other: set[str]) -> Options:
    """The options, and where they say nothing the profile's, as far as those are for this route."""
    open_fields = {
        name: value
        for name, value in msgspec.structs.asdict(preset).items()
        if name not in other | {"instruction"} and getattr(known, name) is None
    }
    return msgspec.structs.replace(known, **open_fields)


def profile_names(profiles: Mapping[str, Profile]) -> list[str]:
    """What `options.profile` may be; every model has a default."""
    return ["default", *sorted(set(profiles) - {"default"})]


@dataclass(frozen=True)
class Instruction:
    """How relevance is to be judged: the request's own field beats the option, which beats the profile's.

    An empty one is none.
    """

    text: str | None
    at: str | None  # the field it came from; None: the profile, or nowhere
    warnings: list[str]


def instruction_of(request: str | None, options: ParsedOptions, path: str) -> Instruction:
    """`path` is the object that holds `instruction` and `options`."""
    option = options.known.instruction
    at = f"{path}.instruction" if request else f"{path}.options.instruction" if option else None
    beaten = bool(request and option and request != option)
    warnings = ["`instruction` differs from `options.instruction`, which was ignored"] * beaten
    return Instruction(request or option or options.profile_instruction or None, at, warnings)


def refuse_instruction(instruction: Instruction) -> None:
    """For a model that reads no instruction: ignoring one would give other scores than asked for."""
    if instruction.at:
        raise InvalidInput(
            f"this model takes no instruction; put it into the query's text - at `{instruction.at}`"
        )


def adapter_of(in_id: str | None, options: Options, path: str) -> str | None:
    """The LoRA adapter a request asks for, in its model's id or in either option.

    Raises:
        InvalidInput: two of them differ.
    """
    given = {"the model's id": in_id, "lora": options.lora, "lora_id": options.lora_id}
    # an empty name is one that no adapter has, never the base model
    names = {where: name for where, name in given.items() if name is not None}
    if len(set(names.values())) > 1:
        said = " and ".join(f"{where} {name!r}" for where, name in names.items())
        raise InvalidInput(f"{said} name different adapters; give one - at `{path}.lora`")
    return next(iter(names.values()), None)


def text_of(item: Item, path: str) -> str:
    """The item's text; text models take nothing else.

    Raises:
        InvalidInput: no text, or another medium.
    """
    for medium in ("images", "audio", "video", "document", "multivector"):
        if getattr(item, medium) is not None:
            raise InvalidInput(f"this model reads text, not {medium} - at `{path}.{medium}`")
    if item.text is None:
        raise InvalidInput(f"missing required field `text` (an empty string is allowed) - at `{path}.text`")
    return item.text


def texts_of(items: Sequence[Item]) -> list[str]:
    """The texts of `$.items`."""
    return [text_of(item, f"$.items[{i}]") for i, item in enumerate(items)]


def refuse_cut(job: Job, limit: int) -> None:
    """For `long_document: refuse`: nothing may be cut to the model's limit.

    Raises:
        InvalidInput: with the first text that would be.
    """
    if job.query_truncated:
        raise InvalidInput(
            f"the query is longer than the model reads ({job.query_limit or limit} tokens), and "
            "long_document 'refuse' does not let it be cut - at `$.query.text`"
        )
    if any(job.truncated):
        raise InvalidInput(
            f"the text, or it and the query, is longer than the {limit} tokens the model reads, and "
            f"long_document 'refuse' does not let it be cut - at `$.items[{job.truncated.index(True)}]`"
        )


def cut_warning(
    truncated: Sequence[bool],
    query_truncated: bool,
    limit: int,
    query_limit: int | None = None,
    most_chunks: int | None = None,
    most_tokens: int | None = None,
) -> list[str]:
    """What was cut, in words; `query_limit` where queries have one of their own.

    With `most_chunks`, documents were split into so many windows at most; `most_tokens` of each were asked for.
    """
    warnings = []
    if query_truncated and query_limit:
        warnings.append(f"the query is longer than the {query_limit} tokens this model reads and was cut")
    elif query_truncated:
        warnings.append(f"the query is longer than the model reads (max_seq_length {limit}) and was cut")
    count = sum(truncated)
    if any(truncated) and most_chunks:
        warnings.append(
            f"{count} of {len(truncated)} documents have more than {most_chunks} chunks (max_chunks); "
            "what follows was not read"
        )
    elif any(truncated):
        limits = f"max_seq_length {limit}" + (f" or max_document_tokens {most_tokens}" if most_tokens else "")
        warnings.append(f"{count} of {len(truncated)} texts are longer than {limits} and were cut at the end")
    return warnings
