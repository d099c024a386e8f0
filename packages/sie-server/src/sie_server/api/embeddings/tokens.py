"""/tokenize and /decode of text-embeddings-inference (TEI). Source: its docs/openapi.json.

The tokens are those of the checkpoint's tokenizer for whole texts, without prompts, templates and truncation.
`POST /v1/inspect/{model}` shows what a reranker reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from sie_server.api.dialects.dialect import Json
from sie_server.api.dialects.fields import Fields
from sie_server.api.embeddings.reading import texts_of
from sie_server.errors import InvalidInput
from sie_server.serving.backend import TokenWork

if TYPE_CHECKING:
    from sie_server.engine.engine import Engine

MOST_CHARS = 100_000  # of all texts: a token's description is much larger than the token
MOST_IDS = 100_000


@dataclass(frozen=True)
class TokenCall:
    """A request that needs a tokenizer only."""

    model: str | None
    texts: list[str]  # that will be tokenised
    work: TokenWork
    warnings: list[str]


def tokenize(fields: Fields) -> TokenCall:
    """Read a body of /tokenize.

    Raises:
        InvalidInput
    """
    texts = texts_of(fields.need(object, "inputs"), "inputs")
    if sum(map(len, texts)) > MOST_CHARS:
        raise InvalidInput(f"at most {MOST_CHARS:,} characters are tokenised per request - at `$.inputs`")
    special = fields.take(bool, "add_special_tokens") is not False
    fields.refuse("prompt_name", "put the prompt into the text; omit this field")
    model = fields.take(str, "model")
    fields.finish(strict=False)
    return TokenCall(model, texts, partial(_tokens, texts=texts, special=special), fields.warnings)


def _tokens(engine: Engine, texts: list[str], *, special: bool) -> list[list[Json]]:
    return [
        [
            {
                "id": place.id,
                "text": place.name if place.special else text[place.start : place.stop],
                "special": place.special,
                "start": None if place.special else place.start,
                "stop": None if place.special else place.stop,
            }
            for place in engine.places(text, special=special)
        ]
        for text in texts
    ]


def decode(fields: Fields) -> TokenCall:
    """Read a body of /decode: one list of ids, or several.

    Raises:
        InvalidInput
    """
    sent: Any = fields.need(list[Any], "ids")
    lists = sent if sent and isinstance(sent[0], list) else [sent]
    if any(not isinstance(ids, list) or not all(map(_is_id, ids)) for ids in lists):
        raise InvalidInput("expected a list of token ids, or a list of such lists - at `$.ids`")
    if sum(map(len, lists)) > MOST_IDS or len(lists) > MOST_IDS:
        raise InvalidInput(f"at most {MOST_IDS:,} ids are decoded per request - at `$.ids`")
    skip = fields.take(bool, "skip_special_tokens") is not False
    model = fields.take(str, "model")
    fields.finish(strict=False)
    return TokenCall(model, [], partial(_texts, lists=lists, skip=skip), fields.warnings)


def _texts(engine: Engine, lists: list[list[int]], *, skip: bool) -> list[str]:
    return [engine.written(ids) if skip else engine.decode(ids) for ids in lists]


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**32
