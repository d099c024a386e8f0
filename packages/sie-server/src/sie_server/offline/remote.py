"""Scores of a running server, through the Python client.

The client retries while a server restarts, until the deadline of the call.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from sie_server.offline.errors import OfflineError, Refused, needed
from sie_server.offline.scorers import PROBE, Answer, Encoded, Options, answer_of, unit
from sie_server.wire import ScoreResponse

if TYPE_CHECKING:
    from sie_sdk import SIEAsyncClient

Result = TypeVar("Result")


class RemoteScorer:
    """The models of a server."""

    def __init__(self, url: str, deadline_s: float | None = None) -> None:
        """`deadline_s`: seconds for one call with its retries; None: the client's own.

        Raises:
            OfflineError: the client is not installed, or the URL is malformed.
        """
        self._sdk = needed("sie_sdk")
        try:
            self._client: SIEAsyncClient = self._sdk.SIEAsyncClient(
                url, timeout=deadline_s, deadline=deadline_s
            )
        except ValueError as error:
            raise OfflineError(f"--endpoint: {error}") from None

    async def identity(self, model: str, options: Options) -> dict[str, Any]:
        """See `Scorer.identity`."""
        answer = await self.score(model, *PROBE, options)
        info = await self._info(model.partition(":")[0])
        version = info.get("revision")
        if stages := info.get("stages"):
            version = [
                (each["model"], each.get("keep"), (await self._info(each["model"])).get("revision"))
                for each in stages
            ]
        return {"place": "endpoint", "version": version, "score_type": answer.score_type}

    async def vector_identity(self, model: str) -> dict[str, Any]:
        """See `Scorer.vector_identity`."""
        await self.encode(model, PROBE[1], is_query=False)
        revision = (await self._info(model.partition(":")[0])).get("revision")
        return {"place": "endpoint", "version": revision}

    async def _info(self, model: str) -> Any:
        return await self._answered(model, self._client.get_model(model))

    async def score(self, model: str, query: str, texts: Sequence[str], options: Options) -> Answer:
        """See `Scorer.score`."""
        items = [self._sdk.Item(id=str(place), text=text) for place, text in enumerate(texts)]
        started, clock = time.time(), time.perf_counter()
        call = self._client.score(
            model, self._sdk.Item(text=query), items, options={"top_n": len(items), **options}
        )
        result = await self._answered(model, call)
        seconds = time.perf_counter() - clock
        try:
            response = msgspec.convert(result, ScoreResponse)
        except msgspec.ValidationError as error:
            raise OfflineError(
                f"{model}: the endpoint's answer is not one of this version: {error}"
            ) from None
        return answer_of(response, started, seconds)

    async def encode(self, model: str, texts: Sequence[str], *, is_query: bool) -> Encoded:
        """See `Scorer.encode`."""
        items = [self._sdk.Item(text=text) for text in texts]
        call = self._client.encode(model, items, output_types=["dense"], is_query=is_query)
        found = await self._answered(model, call)
        return Encoded(
            unit([each["dense"] for each in found]), [each.get("truncated") is True for each in found]
        )

    async def close(self) -> None:
        """See `Scorer.close`."""
        await self._client.close()

    async def _answered(self, model: str, call: Awaitable[Result]) -> Result:
        try:
            return await call
        except self._sdk.SIEConnectionError as error:
            raise OfflineError(
                f"{model}: {error}; start the same command again when the endpoint is back, and it resumes"
            ) from None
        except self._sdk.RequestError as error:
            raise Refused(f"{model}: {error}") from None
        except self._sdk.SIEError as error:
            raise OfflineError(f"{model}: {error}") from None
