"""Scores and vectors of models, by one interface: in this process, or at an endpoint (remote.py)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from sie_server.config import ServerConfig
from sie_server.config.options import LONGEST_S
from sie_server.errors import InvalidInput, SIEError
from sie_server.offline.errors import OfflineError, Refused
from sie_server.wire import (
    EncodeParams,
    EncodeRequest,
    Item,
    ModelInfo,
    ScoreRequest,
    ScoreResponse,
    StageReport,
)

Options = Mapping[str, Any]
Vectors = NDArray[np.float32]


class StageCost(msgspec.Struct, frozen=True):
    """The texts and tokens that a stage of a cascade has read."""

    model: str
    texts: int
    tokens: int


class Answer(msgspec.Struct, frozen=True):
    """The scores of the texts of one request.

    Texts that a cascade has pruned follow those of its last stage, and have the lowest score of these.
    """

    order: list[int]  # places of the texts, the most relevant first
    scores: list[float]  # in the order of the texts
    truncated: list[int]  # places of the texts that the model did not read to their end
    query_truncated: bool
    score_type: str
    started: float  # seconds since the epoch
    seconds: float  # until the answer
    tokens: int = 0  # of all sequences
    stages: list[StageCost] = []  # of a cascade
    pruned: int = 0  # texts at the end of `order`, which its last stage has not read


class Encoded(NamedTuple):
    """The dense vectors of texts."""

    vectors: Vectors  # [texts, width], of length 1 each
    truncated: list[bool]  # by text: the model did not read it to its end


class Scorer(Protocol):
    """Models that score and encode. Use it on one event loop and `close` it."""

    async def identity(self, model: str, options: Options) -> dict[str, Any]:
        """Load a model, check that it scores, and return what distinguishes its scores from those of another version.

        Raises:
            OfflineError: the model is unknown, cannot be loaded or cannot score.
        """

    async def score(self, model: str, query: str, texts: Sequence[str], options: Options) -> Answer:
        """Score texts for a query. Raises OfflineError, or Refused for options that the model does not have."""

    async def vector_identity(self, model: str) -> dict[str, Any]:
        """Load a model, check that it has dense vectors, and return what distinguishes them from another version's.

        Raises:
            OfflineError: the model is unknown, cannot be loaded or has no dense vectors.
        """

    async def encode(self, model: str, texts: Sequence[str], *, is_query: bool) -> Encoded:
        """Return one vector per text. Raises OfflineError."""

    async def close(self) -> None:
        """Free the models or connections."""


PROBE = ("warm-up", ["a text for the first pass"])


class LocalScorer:
    """Runs models in this process."""

    def __init__(self, config: ServerConfig) -> None:
        """Create it on the event loop that uses it. A model is loaded by its first request."""
        from sie_server.serving.service import Service

        # no caller waits: a download may take long, and so may other requests of this process
        self._service = Service(msgspec.structs.replace(config, load_wait_s=LONGEST_S, max_wait_s=LONGEST_S))
        self._config = config

    async def identity(self, model: str, options: Options) -> dict[str, Any]:
        """See `Scorer.identity`."""
        answer, version = await self._score(model, *PROBE, options)
        return {**self._about(version), "score_type": answer.score_type}

    async def vector_identity(self, model: str) -> dict[str, Any]:
        """See `Scorer.vector_identity`."""
        return self._about((await self._encode(model, PROBE[1], is_query=False))[1])

    def _about(self, version: str) -> dict[str, Any]:
        config = self._config
        return {"place": "in process", "version": version, "device": config.device, "dtype": config.dtype}

    async def score(self, model: str, query: str, texts: Sequence[str], options: Options) -> Answer:
        """See `Scorer.score`."""
        return (await self._score(model, query, texts, options))[0]

    async def _score(
        self, model: str, query: str, texts: Sequence[str], options: Options
    ) -> tuple[Answer, str]:
        from sie_server.serving.metrics import RequestTiming

        items = [Item(id=str(place), text=text) for place, text in enumerate(texts)]
        request = ScoreRequest(Item(text=query), items, options={"top_n": len(items), **options})
        started, timing = time.time(), RequestTiming()
        clock = time.perf_counter()
        try:
            response = await self._service.score(model, request, timing)
        except InvalidInput as error:
            raise Refused(f"{model}: {error.message}") from None
        except SIEError as error:
            raise OfflineError(f"{model}: {error.message}") from None
        seconds = time.perf_counter() - clock
        return answer_of(response, started, seconds), timing.version

    async def encode(self, model: str, texts: Sequence[str], *, is_query: bool) -> Encoded:
        """See `Scorer.encode`."""
        return (await self._encode(model, texts, is_query=is_query))[0]

    async def _encode(self, model: str, texts: Sequence[str], *, is_query: bool) -> tuple[Encoded, str]:
        from sie_server.serving.metrics import RequestTiming

        params = EncodeParams(output_types=["dense"], is_query=is_query)
        request, timing = EncodeRequest([Item(text=text) for text in texts], params), RequestTiming()
        try:
            response = await self._service.encode(model, request, timing)
        except SIEError as error:
            raise OfflineError(f"{model}: {error.message}") from None
        vectors = unit([item.dense.values for item in response.items])  # type: ignore[union-attr]
        return Encoded(vectors, [item.truncated is True for item in response.items]), timing.version

    async def info(self, model: str) -> ModelInfo:
        """Describe a model. Raises OfflineError."""
        try:
            return await self._service.info(self._service.resolve(model)[0])
        except SIEError as error:
            raise OfflineError(f"{model}: {error.message}") from None

    async def close(self) -> None:
        """See `Scorer.close`."""
        await self._service.close()


def answer_of(response: ScoreResponse, started: float, seconds: float) -> Answer:
    """Return the answer of a response whose item ids are the places of the texts."""
    stages = response.stages or []
    order = [int(entry.item_id) for entry in response.scores]
    by_place = {int(entry.item_id): entry.score for entry in response.scores}
    for stage in reversed(stages):  # the last stage that read a text knows best
        order += [int(place) for place in stage.pruned]
    lowest = min(by_place.values())
    return Answer(
        order,
        [by_place.get(place, lowest) for place in range(len(order))],
        sorted(int(entry.item_id) for entry in response.scores if entry.truncated is True),
        response.query_truncated is True,
        response.score_type,
        started,
        seconds,
        response.usage.input_tokens,
        list(_costs(stages, len(order))),
        len(order) - len(by_place),
    )


def _costs(stages: Sequence[StageReport], texts: int) -> Iterator[StageCost]:
    for stage in stages:
        yield StageCost(stage.model, texts if stage.input_tokens else 0, stage.input_tokens)
        texts -= len(stage.pruned)


def unit(vectors: Sequence[Any]) -> Vectors:
    """Return vectors with length 1; a vector of zeros stays as it is."""
    matrix = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    result: Vectors = np.divide(matrix, lengths, out=np.zeros_like(matrix), where=lengths > 0)
    return result
