"""Ranking and embedding of plain texts, shared by the framework integrations.

Candidates are identified by their positions in the list, because a framework's documents may lack ids or share them.
Clients are created on first use, one for blocking calls and one for the others. A TextClient can be pickled, without
its connections.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sie_sdk.client import SIEAsyncClient, SIEClient
from sie_sdk.errors import ProtocolError
from sie_sdk.settings import resolve
from sie_sdk.types import ChunkSpan, EncodeResult, Item, ScoreResult

log = logging.getLogger("sie_sdk")
BATCH = 128  # texts in one encode request, which keeps bodies small; the server forms its own batches


class Ranked(NamedTuple):
    """A ranked text: its position in the list, its score, and its best window if long texts were split."""

    position: int
    score: float
    chunk: ChunkSpan | None


class TextClient:
    """Ranks and embeds plain texts. Arguments are those of SIEClient; raises ValueError for an invalid one."""

    def __init__(
        self, base_url: str | None = None, api_key: str | None = None, timeout: float | None = None
    ) -> None:
        resolve(base_url, api_key=api_key, timeout=timeout)  # reports invalid settings early
        self._arguments = (base_url, api_key, timeout)
        self._blocking: SIEClient | None = None
        self._async: SIEAsyncClient | None = None

    def rank(
        self,
        model: str,
        query: str,
        texts: Sequence[str],
        *,
        instruction: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> list[Ranked]:
        """Return all `texts`, the most relevant first. An empty list sends no request.

        Texts that a cascade has pruned are left out.

        Raises SIEError, also for a missing score.
        """
        if not texts:
            return []
        result = self._client().score(
            model, Item(text=query), numbered(texts), instruction=instruction, options=options
        )
        return in_order(result, len(texts))

    async def arank(
        self,
        model: str,
        query: str,
        texts: Sequence[str],
        *,
        instruction: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> list[Ranked]:
        """Like `rank`, without blocking the event loop."""
        if not texts:
            return []
        result = await self._async_client().score(
            model, Item(text=query), numbered(texts), instruction=instruction, options=options
        )
        return in_order(result, len(texts))

    def embed(self, model: str, texts: Sequence[str], **params: Any) -> list[list[float]]:
        """Return a dense vector for each text. `params`: is_query, instruction, options, as in SIEClient.encode."""
        client = self._client()
        return [
            _dense(one)
            for batch in _batches(texts)
            for one in client.encode(model, batch, output_types=["dense"], **params)
        ]

    async def aembed(self, model: str, texts: Sequence[str], **params: Any) -> list[list[float]]:
        """Like `embed`, without blocking the event loop."""
        client = self._async_client()
        return [
            _dense(one)
            for batch in _batches(texts)
            for one in await client.encode(model, batch, output_types=["dense"], **params)
        ]

    def close(self) -> None:
        """Close the connections of blocking calls; a later call opens new ones."""
        client, self._blocking = self._blocking, None
        if client is not None:
            client.close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop; a later call opens new ones."""
        client, self._async = self._async, None
        if client is not None:
            await client.close()

    def _client(self) -> SIEClient:
        if self._blocking is None:
            base_url, api_key, timeout = self._arguments
            self._blocking = SIEClient(base_url, api_key=api_key, timeout=timeout)
        return self._blocking

    def _async_client(self) -> SIEAsyncClient:
        if self._async is None:
            base_url, api_key, timeout = self._arguments
            self._async = SIEAsyncClient(base_url, api_key=api_key, timeout=timeout)
        return self._async

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextClient) and self._arguments == other._arguments

    def __hash__(self) -> int:
        return hash(self._arguments)

    def __reduce__(self) -> tuple[type[TextClient], tuple[Any, ...]]:
        return TextClient, self._arguments


def numbered(texts: Sequence[str]) -> list[Item]:
    """Return items whose ids are their positions."""
    return [Item(id=str(index), text=text) for index, text in enumerate(texts)]


def in_order(result: ScoreResult, count: int) -> list[Ranked]:
    """Return the entries of an answer to `numbered` texts, the best first, and log the server's warnings.

    Raises ProtocolError unless each of the `count` texts has exactly one finite score, or was pruned by a cascade.
    """
    for warning in result.get("warnings", ()):
        log.warning("score: %s", warning)
    missing = {str(index) for index in range(count)}
    ranked = []
    for entry in result["scores"]:
        place = entry["item_id"]
        if place not in missing:
            raise _broken(result, f"item {place!r} was not sent or already has a score")
        if not math.isfinite(entry["score"]):
            raise _broken(result, f"the score of item {place!r} is {entry['score']}")
        missing.remove(place)
        ranked.append(Ranked(int(place), entry["score"], entry.get("chunk")))
    missing.difference_update(*(stage["pruned"] for stage in result.get("stages", ())))
    if missing:
        hint = "check whether an option or a profile sets top_n"
        raise _broken(result, f"{len(missing)} of {count} texts have no score; {hint}")
    return ranked


def _broken(result: ScoreResult, message: str) -> ProtocolError:
    return ProtocolError(f"the answer cannot be used: {message}", request_id=result.get("request_id"))


def _batches(texts: Sequence[str]) -> Iterator[list[Item]]:
    for start in range(0, len(texts), BATCH):
        yield numbered(texts[start : start + BATCH])


def _dense(result: EncodeResult) -> list[float]:
    if "dense" not in result:
        raise ProtocolError("the answer has no dense vector", request_id=result.get("request_id"))
    vector: list[float] = result["dense"].tolist()
    return vector
