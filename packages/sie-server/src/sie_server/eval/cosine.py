"""A model of dense vectors as a reranker: its score is the cosine of query and text."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sie_server.eval.first_stage import ENCODE_TEXTS
from sie_server.offline.errors import Refused
from sie_server.offline.scorers import Answer, Encoded, Options, Scorer, Vectors

KEPT_BYTES = 2**28  # of vectors and their texts
Kept = tuple[Vectors, bool]  # the vector of a text, and whether the text was truncated


class CosineScorer:
    """Scores with the dense vectors of another scorer's models.

    The vectors of texts are kept, because most documents are candidates of several queries. The least recently used
    ones leave first.
    """

    def __init__(self, scorer: Scorer, kept_bytes: int = KEPT_BYTES) -> None:
        self._scorer, self._most = scorer, kept_bytes
        self._kept: OrderedDict[tuple[str, str], Kept] = OrderedDict()
        self._bytes = 0

    async def identity(self, model: str, options: Options) -> dict[str, Any]:
        """See `Scorer.identity`."""
        _refuse(model, options)
        return {**await self._scorer.vector_identity(model), "score_type": "cosine"}

    async def vector_identity(self, model: str) -> dict[str, Any]:
        """See `Scorer.vector_identity`."""
        return await self._scorer.vector_identity(model)

    async def score(self, model: str, query: str, texts: Sequence[str], options: Options) -> Answer:
        """See `Scorer.score`."""
        _refuse(model, options)
        started, clock = time.time(), time.perf_counter()
        asked = await self._scorer.encode(model, [query], is_query=True)
        found = await self._documents(model, texts)
        scores = [float(each[0] @ asked.vectors[0]) for each in found]
        order = sorted(
            range(len(texts)), key=lambda place: -scores[place]
        )  # stable, as the first stage had them
        seconds = time.perf_counter() - clock
        cut = [place for place, (_, truncated) in enumerate(found) if truncated]
        return Answer(order, scores, cut, asked.truncated[0], "cosine", started, seconds)

    async def encode(self, model: str, texts: Sequence[str], *, is_query: bool) -> Encoded:
        """See `Scorer.encode`."""
        return await self._scorer.encode(model, texts, is_query=is_query)

    async def close(self) -> None:
        """See `Scorer.close`."""
        await self._scorer.close()

    async def _documents(self, model: str, texts: Sequence[str]) -> list[Kept]:
        found: dict[str, Kept] = {}
        for text in texts:
            if kept := self._kept.get((model, text)):
                self._kept.move_to_end((model, text))
                found[text] = kept
        missing = list(dict.fromkeys(text for text in texts if text not in found))
        for start in range(0, len(missing), ENCODE_TEXTS):
            some = missing[start : start + ENCODE_TEXTS]
            encoded = await self._scorer.encode(model, some, is_query=False)
            found |= dict(zip(some, zip(encoded.vectors, encoded.truncated, strict=True), strict=True))
        self._keep(model, {text: found[text] for text in missing})
        return [found[text] for text in texts]

    def _keep(self, model: str, found: Mapping[str, Kept]) -> None:
        for text, (vector, truncated) in found.items():
            if (model, text) not in self._kept:  # a request at the same time may have kept it
                self._kept[model, text] = (
                    np.array(vector),
                    truncated,
                )  # a copy: a row holds all rows of its batch
                self._bytes += _size(text, vector)
        while self._bytes > self._most:
            (_, text), (vector, _) = self._kept.popitem(last=False)
            self._bytes -= _size(text, vector)


def _size(text: str, vector: Vectors) -> int:
    return vector.nbytes + 4 * len(text) + 500  # of the entry itself


def _refuse(model: str, options: Options) -> None:
    if options:
        raise Refused(
            f"encode:{model}: the cosine of vectors has no options, but {', '.join(sorted(options))} is given"
        )
