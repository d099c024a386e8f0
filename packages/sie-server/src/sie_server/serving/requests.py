"""What must hold of a request beyond its types; every complaint names the field and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from sie_server.engine.job import Job
from sie_server.errors import InvalidInput
from sie_server.wire import Item, Options


@dataclass(frozen=True)
class ParsedOptions:
    """Options of known names, and a warning for each of the others."""

    known: Options
    warnings: list[str]


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
    },
    "encode": {"is_query", "dimensions"},
}


def parse_options(
    raw: dict[str, Any] | None, path: str, route: Literal["score", "encode"] = "score"
) -> ParsedOptions:
    """Check the options at `path`.

    Raises:
        InvalidInput: a known option of a wrong type or value, or a profile that does not exist.
    """
    raw = raw or {}
    try:
        known = msgspec.convert(raw, Options)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$")
        raise InvalidInput(f"{reason} - at `{path}{where or '`'}") from None
    if known.profile not in (None, "default"):
        raise InvalidInput(
            f"this model has no profile {known.profile!r}, only 'default' - at `{path}.profile`"
        )
    unknown = sorted(set(raw) - set(Options.__struct_fields__))
    other = ONLY["encode" if route == "score" else "score"]
    misplaced = sorted(name for name, value in raw.items() if name in other and value is not None)
    return ParsedOptions(
        known,
        [f"option {name!r} is unknown and was ignored" for name in unknown]
        + [f"option {name!r} has no effect on {route} and was ignored" for name in misplaced],
    )


def refuse_instruction(*instructions: tuple[str | None, str]) -> None:
    """For a model that reads no instruction: ignoring one would give other scores than asked for."""
    for instruction, path in instructions:
        if instruction:
            raise InvalidInput(f"this model takes no instruction; put it into the query's text - at `{path}`")


def one_instruction(request: str | None, option: str | None) -> str | None:
    """The instruction of a request, from either of its two places; an empty one is none.

    Raises:
        InvalidInput: both are given and differ.
    """
    if request and option and request != option:
        raise InvalidInput(
            "`instruction` and `options.instruction` differ; give one - at `$.options.instruction`"
        )
    return request or option or None


def check_instruction(taken: bool, instruction: str | None, in_options: str | None) -> None:
    """Refuse an instruction for a model that takes none."""
    if not taken:
        refuse_instruction((instruction, "$.instruction"), (in_options, "$.options.instruction"))


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
            f"with the query, the text is longer than the {limit} tokens the model reads, and "
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
