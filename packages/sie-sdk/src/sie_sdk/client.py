"""`SIEClient` and `SIEAsyncClient`: two short drivers of the same flow.

`calls` builds the requests, `flow` decides when to retry them, and `connections` carry out the steps. Both clients have
the same methods and arguments. Threads may share a sync client, and event loops an async client. A forked process may
go on using a client of its parent: it opens connections of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar, Unpack, overload

from sie_sdk import calls
from sie_sdk.calls import Call
from sie_sdk.connections import AsyncConnections, Connections
from sie_sdk.errors import SIEError
from sie_sdk.flow import Clock, Flow, Outcome, Patience, Sleep, exchange
from sie_sdk.settings import resolve, seconds
from sie_sdk.types import EncodeResult, ItemLike, ModelInfo, OutputDtype, OutputType, ScoreResult

T = TypeVar("T")


class WaitParams(TypedDict, total=False):
    """Time limits of one call in seconds; the client's settings if absent.

    timeout: silence of the server in one attempt. deadline: all attempts and the waits between them.
    """

    timeout: float | None
    deadline: float | None


class ScoreParams(WaitParams, total=False):
    """Arguments of `score` in addition to model, query and items.

    instruction: overrides `options["instruction"]`, which overrides the profile's. options: `profile`, `lora`,
    `top_n`, `max_seq_length` and the other options that the server documents.
    """

    instruction: str | None
    options: Mapping[str, Any] | None


class EncodeParams(ScoreParams, total=False):
    """Arguments of `encode` in addition to model and items.

    output_types: kinds of vector, the model's default if absent. output_dtype: the number format of the
    vectors. is_query: encode as a query instead of a document.
    """

    output_types: Sequence[OutputType] | None
    output_dtype: OutputDtype | None
    is_query: bool | None


class _Client:
    """Base of both clients: the settings and the start of a flow."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | None = None,
        deadline: float | None = None,
        machine_profile: str | None = None,
        pool: str | None = None,
        transport: Any = None,
    ) -> None:
        """Create a client; nothing is sent yet. Raises ValueError for an invalid setting.

        Arguments override SIE_BASE_URL, SIE_API_KEY and SIE_TIMEOUT, which override the defaults: a timeout of 150 s of
        silence in one attempt and a deadline of 900 s for a call with its retries. machine_profile and pool are sent as
        headers for routers in front of the server. transport: an httpx transport that replaces the network.
        """
        self._arguments: dict[str, Any] = {
            "base_url": base_url,
            "api_key": api_key,
            "timeout": timeout,
            "deadline": deadline,
            "machine_profile": machine_profile,
            "pool": pool,
        }
        self._has_transport = transport is not None
        self._settings = resolve(**self._arguments)
        self._connections = self._open(transport)

    def _open(self, transport: Any) -> Any:
        raise NotImplementedError

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the settings, the key included, for another process. Raises SIEError if there is a transport."""
        if self._has_transport:
            raise SIEError("a client with a transport cannot be pickled; create one in each process")
        return partial(type(self), **self._arguments), ()

    def _flow(self, call: Call[T]) -> Flow:
        if sys.is_finalizing():  # a destructor calls, and modules are gone
            raise SIEError("the interpreter is shutting down; call the client before, for example in atexit")
        settings = self._settings
        timeout = seconds("timeout", call.timeout)
        # As in the settings: a timeout above the deadline extends the deadline.
        deadline = seconds("deadline", call.deadline) or max(settings.deadline, timeout or 0.0)
        answered = self._connections.answered
        patience = Patience(timeout or settings.timeout, deadline, settings.shown_url, answered, call.give_up)
        return exchange(call.request, patience, Clock())


class SIEClient(_Client):
    """The blocking client. Use it as a context manager, or call `close()`."""

    _connections: Connections

    def score(
        self, model: str, query: ItemLike, items: Sequence[ItemLike], **params: Unpack[ScoreParams]
    ) -> ScoreResult:
        """Rank `items` by their relevance to `query`. Raises SIEError; keywords: ScoreParams."""
        return self._run(calls.score(model, query, items, **params))

    @overload
    def encode(self, model: str, items: ItemLike, **params: Unpack[EncodeParams]) -> EncodeResult: ...
    @overload
    def encode(
        self, model: str, items: Sequence[ItemLike], **params: Unpack[EncodeParams]
    ) -> list[EncodeResult]: ...
    def encode(
        self, model: str, items: ItemLike | Sequence[ItemLike], **params: Unpack[EncodeParams]
    ) -> EncodeResult | list[EncodeResult]:
        """Return vectors: one result for an Item, a list for a list. Raises SIEError; keywords: EncodeParams."""
        results = self._run(calls.encode(model, items, **params))
        return results[0] if isinstance(items, Mapping) else results

    def list_models(self, **wait: Unpack[WaitParams]) -> list[ModelInfo]:
        """Return all models that the server can serve. Raises SIEError."""
        return self._run(calls.list_models(**wait))

    def get_model(self, model: str, **wait: Unpack[WaitParams]) -> ModelInfo:
        """Return a model's description without loading it. Raises ModelNotFoundError and other SIEErrors."""
        return self._run(calls.get_model(model, **wait))

    def close(self) -> None:
        """Close the connections. The client cannot be used afterwards."""
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, transport: Any) -> Connections:
        return Connections(self._settings, transport)

    def _run(self, call: Call[T]) -> T:
        flow = self._flow(call)
        outcome: Outcome = None
        while True:
            try:
                step = flow.send(outcome)
            except StopIteration as done:
                return call.read(done.value)
            if isinstance(step, Sleep):
                time.sleep(step.seconds)
                outcome = None
            else:
                outcome = self._connections.send(step)


class SIEAsyncClient(_Client):
    """The client for asyncio. Use it with `async with`, or await `close()`. Each event loop has its own connections."""

    _connections: AsyncConnections

    async def score(
        self, model: str, query: ItemLike, items: Sequence[ItemLike], **params: Unpack[ScoreParams]
    ) -> ScoreResult:
        """Rank `items` by their relevance to `query`. Raises SIEError; keywords: ScoreParams."""
        return await self._run(calls.score(model, query, items, **params))

    @overload
    async def encode(self, model: str, items: ItemLike, **params: Unpack[EncodeParams]) -> EncodeResult: ...
    @overload
    async def encode(
        self, model: str, items: Sequence[ItemLike], **params: Unpack[EncodeParams]
    ) -> list[EncodeResult]: ...
    async def encode(
        self, model: str, items: ItemLike | Sequence[ItemLike], **params: Unpack[EncodeParams]
    ) -> EncodeResult | list[EncodeResult]:
        """Return vectors: one result for an Item, a list for a list. Raises SIEError; keywords: EncodeParams."""
        results = await self._run(calls.encode(model, items, **params))
        return results[0] if isinstance(items, Mapping) else results

    async def list_models(self, **wait: Unpack[WaitParams]) -> list[ModelInfo]:
        """Return all models that the server can serve. Raises SIEError."""
        return await self._run(calls.list_models(**wait))

    async def get_model(self, model: str, **wait: Unpack[WaitParams]) -> ModelInfo:
        """Return a model's description without loading it. Raises ModelNotFoundError and other SIEErrors."""
        return await self._run(calls.get_model(model, **wait))

    async def close(self) -> None:
        """Close the connections of the running event loop. The client cannot be used afterwards, in any loop."""
        await self._connections.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _open(self, transport: Any) -> AsyncConnections:
        return AsyncConnections(self._settings, transport)

    async def _run(self, call: Call[T]) -> T:
        import asyncio  # slow to import; an application with an event loop has imported it already

        flow = self._flow(call)
        outcome: Outcome = None
        while True:
            try:
                step = flow.send(outcome)
            except StopIteration as done:
                return call.read(done.value)
            if isinstance(step, Sleep):
                await asyncio.sleep(step.seconds)
                outcome = None
            else:
                outcome = await self._connections.send(step)
