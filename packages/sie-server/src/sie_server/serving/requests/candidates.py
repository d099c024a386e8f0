"""The query and candidates of a score request: texts, or token vectors instead of texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import structs

from sie_server.arrays import array_of
from sie_server.engine.job import Floats
from sie_server.errors import InvalidInput
from sie_server.models.spec import LateInteractionSpec, ModelSpec
from sie_server.wire import Item, ScoreRequest, is_plain
from sie_server.wire.limits import MAX_VALUES

CHARS_PER_TOKEN = 5  # of English text
AROUND = 8  # characters that the special tokens around a text count as


@dataclass(frozen=True)
class Candidates:
    """A query and its candidates. Either all candidates are texts, or all are token vectors."""

    request: ScoreRequest
    query: str | None  # None: token vectors
    texts: list[str] | None

    @property
    def vectors(self) -> bool:
        """True when the query or the candidates are token vectors."""
        return self.query is None or self.texts is None

    def alone(self) -> list[Candidates]:
        """Return the candidate texts as requests of their own."""
        items = zip(self.request.items, self.texts or (), strict=True)
        return [
            Candidates(structs.replace(self.request, items=[item]), self.query, [text])
            for item, text in items
        ]

    def only(self, places: Sequence[int]) -> Candidates:
        """Return the candidate texts at some places; the request keeps all items."""
        texts = self.texts or ()
        return Candidates(self.request, self.query, [texts[place] for place in places])

    def query_vectors(self, spec: ModelSpec) -> str | Floats:
        """The query's text, or its vectors [tokens, dim].

        Raises:
            InvalidInput: the vectors do not fit the model.
        """
        if self.query is not None:
            return self.query
        width = self._width(spec)
        vectors, _ = _vectors(self.request.query, width, "$.query", MAX_VALUES, spec.backbone.max_length)
        return vectors

    def item_vectors(self, spec: ModelSpec) -> list[Floats]:
        """The vectors [tokens, dim] of every candidate.

        Raises:
            InvalidInput: the vectors do not fit the model.
        """
        width, left, found = self._width(spec), MAX_VALUES, []
        for i, item in enumerate(self.request.items):
            vectors, count = _vectors(item, width, f"$.items[{i}]", left)
            left -= count
            found.append(vectors)
        return found

    def _width(self, spec: ModelSpec) -> int:
        if isinstance(spec.head, LateInteractionSpec):
            return spec.head.dim
        path = "$.query" if self.query is None else "$.items[0]"
        raise InvalidInput(f"this model reads text, not multivector - at `{path}.multivector`")


def candidates_of(request: ScoreRequest) -> Candidates:
    """Check query and items as far as possible without the model.

    Raises:
        InvalidInput: an item has neither text nor vectors or both, or the items mix texts and vectors.
    """
    query = None if _is_vectors(request.query, "$.query") else text_of(request.query, "$.query")
    if all(item.multivector is None for item in request.items):
        return Candidates(request, query, texts_of(request.items))
    given = [_is_vectors(item, f"$.items[{i}]") for i, item in enumerate(request.items)]
    if not all(given):
        odd = given.index(not given[0])
        raise InvalidInput(
            "some items are texts and some are multivectors; send all of one kind "
            f"- at `$.items[{odd}].{'multivector' if given[odd] else 'text'}`"
        )
    return Candidates(request, query, None)


def texts_only(request: ScoreRequest) -> Candidates:
    """Check query and items of a request that must not contain vectors.

    Raises:
        InvalidInput: an item has no text.
    """
    return Candidates(request, text_of(request.query, "$.query"), texts_of(request.items))


def text_of(item: Item, path: str) -> str:
    """Return the item's text.

    Raises:
        InvalidInput: the item has no text, or another medium.
    """
    for medium in ("images", "audio", "video", "document", "multivector"):
        if getattr(item, medium) is not None:
            raise InvalidInput(f"this model reads text, not {medium} - at `{path}.{medium}`")
    if item.text is None:
        raise InvalidInput(f"missing required field `text` (an empty string is allowed) - at `{path}.text`")
    return item.text


def texts_of(items: Sequence[Item]) -> list[str]:
    """Return the texts of `$.items`."""
    return [
        item.text if item.text is not None and is_plain(item) else text_of(item, f"$.items[{i}]")
        for i, item in enumerate(items)
    ]


def characters_of(texts: Iterable[str], limit: int, repeats: float = 1.0) -> int:
    """Estimate the characters of texts that are read to `limit` tokens each, every part `repeats` times."""
    return sum(sizes_of(texts, limit, repeats))


def sizes_of(texts: Iterable[str], limit: int, repeats: float = 1.0) -> list[int]:
    """Estimate the characters of each text that are read; see `characters_of`."""
    most = limit * CHARS_PER_TOKEN
    return [min(int(len(text) * repeats) + AROUND, most) for text in texts]


def _is_vectors(item: Item, path: str) -> bool:
    if item.multivector is None:
        return False
    if item.text is not None:
        raise InvalidInput(f"give either text or multivector, not both - at `{path}.multivector`")
    return True


def _vectors(
    item: Item, width: int, path: str, most_values: int, most: int | None = None
) -> tuple[Floats, int]:
    """Return [tokens, width] float32 with at most `most` tokens, and the number of values that were decoded."""
    path = f"{path}.multivector"
    value, count = item.multivector.decode(path, most_values)
    array = array_of(value, path)
    if array.ndim != 2 or 0 in array.shape:
        raise InvalidInput(
            f"shape {list(array.shape)}; expected [tokens, width] with at least one token - at `{path}`"
        )
    if array.shape[1] != width:
        raise InvalidInput(
            f"the vectors are {array.shape[1]} wide, those of this model are {width} wide - at `{path}`"
        )
    if most and len(array) > most:
        raise InvalidInput(f"{len(array)} vectors; a query of this model has at most {most} - at `{path}`")
    if array.dtype.kind != "f" and not isinstance(value, list):
        raise InvalidInput(
            f"dtype {array.dtype} cannot be scored; send float16, float32 or float64 - at `{path}`"
        )
    with np.errstate(over="ignore"):
        vectors = array.astype(np.float32)
    if not np.isfinite(vectors).all():
        raise InvalidInput(f"a value is not a finite float32 - at `{path}`")
    return vectors, count
