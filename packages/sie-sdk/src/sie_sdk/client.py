"""`SIEClient` and `SIEAsyncClient`: two short drivers of the same flow.

`calls` builds the requests, `flow` decides when to retry them, and the clients carry out the steps with httpx, which is
imported when a client is created. Both have the same methods and arguments. Threads may share a sync client.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar, Unpack, overload

from sie_sdk import calls
from sie_sdk.calls import Call
from sie_sdk.flow import Clock, Failure, Flow, Outcome, Patience, Reply, Send, Sleep, exchange
from sie_sdk.settings import SkewWatch, resolve, seconds
from sie_sdk.types import EncodeResult, ItemLike, ModelInfo, OutputDtype, OutputType, ScoreResult

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
CONNECT_TIMEOUT = 10.0  # seconds; a host that takes longer is taken to be unreachable


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
        self._settings = resolve(
            base_url,
            api_key=api_key,
            timeout=timeout,
            deadline=deadline,
            machine_profile=machine_profile,
            pool=pool,
        )
        self._skew = SkewWatch()
        self._http = self._open(transport)

    def _open(self, transport: Any) -> Any:
        raise NotImplementedError

    def _http_options(self, transport: Any) -> dict[str, Any]:
        import httpx

        return {
            "headers": dict(self._settings.headers),
            "transport": transport,
            # Waiting for a free connection would count as silence of the server, so their number is not limited.
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=32),
        }

    def _flow(self, call: Call[T]) -> Flow:
        settings = self._settings
        timeout = seconds("timeout", call.timeout)
        # As in the settings: a timeout above the deadline extends the deadline.
        deadline = seconds("deadline", call.deadline) or max(settings.deadline, timeout or 0.0)
        patience = Patience(timeout or settings.timeout, deadline, settings.shown_url)
        return exchange(call.request, patience, Clock())

    def _httpx_request(self, send: Send) -> httpx.Request:
        import httpx

        request = send.request
        headers = {"Accept": request.accept}
        if request.content_type is not None:
            headers["Content-Type"] = request.content_type
        built: httpx.Request = self._http.build_request(
            request.method,
            self._settings.base_url + request.path,
            content=request.body,
            headers=headers,
            timeout=httpx.Timeout(send.timeout, connect=min(send.timeout, CONNECT_TIMEOUT)),
        )
        return built

    def _reply(self, response: httpx.Response, body: bytes) -> Reply:
        headers = {name.lower(): value for name, value in response.headers.items()}
        self._skew.see(headers)
        return Reply(response.status_code, headers, body)


class SIEClient(_Client):
    """The blocking client. Use it as a context manager, or call `close()`."""

    _http: httpx.Client

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
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, transport: Any) -> httpx.Client:
        import httpx

        return httpx.Client(**self._http_options(transport))

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
                outcome = self._send(step)

    def _send(self, send: Send) -> Outcome:
        import httpx

        response = None
        try:
            response = self._http.send(self._httpx_request(send), stream=True)
            return self._reply(response, response.read())
        except httpx.HTTPError as exc:
            return _failure(exc, begun=response is not None)
        finally:
            if response is not None:
                response.close()


class SIEAsyncClient(_Client):
    """The client for asyncio. Use it with `async with`, or await `close()`."""

    _http: httpx.AsyncClient

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
        """Close the connections. The client cannot be used afterwards."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _open(self, transport: Any) -> httpx.AsyncClient:
        import httpx

        return httpx.AsyncClient(**self._http_options(transport))

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
                outcome = await self._send(step)

    async def _send(self, send: Send) -> Outcome:
        import httpx

        response = None
        try:
            response = await self._http.send(self._httpx_request(send), stream=True)
            return self._reply(response, await response.aread())
        except httpx.HTTPError as exc:
            return _failure(exc, begun=response is not None)
        finally:
            if response is not None:
                await response.aclose()


def _failure(error: httpx.HTTPError, *, begun: bool) -> Failure:
    """Convert an httpx exception to a Failure. `begun`: the head of the answer had arrived."""
    import httpx

    detail = str(error) or type(error).__name__
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)):
        return Failure("connect", detail)
    if isinstance(error, httpx.TimeoutException):
        return Failure("timeout", detail)
    if begun or isinstance(error, (httpx.LocalProtocolError, httpx.UnsupportedProtocol)):
        return Failure("broken", detail)
    return Failure("dropped", detail)
