"""Everything the client raises, in one tree.

    SIEError
    ├── SIEConnectionError          no answer: refused, reset, cut short
    │   └── SIETimeoutError         no answer in time; the server may still be at work
    ├── RequestError                the request cannot work as it is (other 4xx, or refused before sending)
    │   ├── AuthError               401, 403
    │   ├── InputTooLongError       413, or 400 INPUT_TOO_LONG
    │   └── ModelNotFoundError      404 MODEL_NOT_FOUND
    ├── RateLimitedError            429, still so at the deadline
    ├── ServerError                 any other 5xx
    │   ├── InferenceError          500 INFERENCE_ERROR
    │   ├── ModelLoadFailedError    502 MODEL_LOAD_FAILED
    │   ├── ModelLoadingError       503 MODEL_LOADING, still so at the deadline
    │   ├── QueueFullError          503 QUEUE_FULL, still so at the deadline
    │   └── ResourceExhaustedError  503 RESOURCE_EXHAUSTED, after its retries
    └── ProtocolError               a response that does not follow docs/http-api.md

`error_for` chooses the class by table, from the status and the code the server sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class SIEError(Exception):
    """Root of the tree.

    message: what went wrong, in words. code: the server's code, None when there is none. status: the HTTP
    status, None when no answer came. request_id: quote it when asking about a request. retryable: True when
    the condition passes by itself; the client has then already retried it as far as its limits allow.
    details: the server's error map.
    """

    passes_by_itself: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
        retryable: bool | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = status
        self.request_id = request_id
        self.retryable = self.passes_by_itself if retryable is None else retryable
        self.details: dict[str, Any] = dict(details or {})

    def __str__(self) -> str:
        request = f"request {self.request_id}" if self.request_id else ""
        label = " ".join(str(part) for part in (self.status, self.code) if part is not None)
        origin = ", ".join(part for part in (label, request) if part)
        return f"{self.message} ({origin})" if origin else self.message


class SIEConnectionError(SIEError):
    """The server could not be reached, or the connection broke."""


class SIETimeoutError(SIEConnectionError):
    """The server did not answer in time. Never retried: it may still be working on the first request."""


class RequestError(SIEError):
    """The request is wrong; sending it again will not help."""


class AuthError(RequestError):
    """The API key is missing or not accepted."""


class InputTooLongError(RequestError):
    """The input is longer than the model or the server takes."""


class ModelNotFoundError(RequestError):
    """The server does not know this model; its message suggests names that are close."""


class RateLimitedError(SIEError):
    """The caller is over its rate limit."""

    passes_by_itself = True


class ServerError(SIEError):
    """The server failed."""


class InferenceError(ServerError):
    """The model failed on this input."""


class ModelLoadFailedError(ServerError):
    """The model cannot be loaded."""

    @property
    def error_class(self) -> str | None:
        """What kind of failure it was on the server."""
        return self.details.get("error_class")

    @property
    def permanent(self) -> bool:
        """True when the server will not try again."""
        return self.details.get("permanent") is not False

    @property
    def attempts(self) -> int | None:
        """How many times the server tried to load the model."""
        return self.details.get("attempts")


class ModelLoadingError(ServerError):
    """The model was still loading when the deadline came."""

    passes_by_itself = True


class QueueFullError(ServerError):
    """The server was shedding load until the deadline."""

    passes_by_itself = True


class ResourceExhaustedError(ServerError):
    """The device is out of memory for this request."""

    passes_by_itself = True


class ProtocolError(SIEError):
    """The response does not follow docs/http-api.md. The message names the missing or malformed field."""


_BY_STATUS_AND_CODE: dict[tuple[int, str | None], type[SIEError]] = {
    (400, "INPUT_TOO_LONG"): InputTooLongError,
    (404, "MODEL_NOT_FOUND"): ModelNotFoundError,
    (500, "INFERENCE_ERROR"): InferenceError,
    (502, "MODEL_LOAD_FAILED"): ModelLoadFailedError,
    (503, "MODEL_LOADING"): ModelLoadingError,
    (503, "QUEUE_FULL"): QueueFullError,
    (503, "RESOURCE_EXHAUSTED"): ResourceExhaustedError,
}
_BY_STATUS: dict[int, type[SIEError]] = {
    401: AuthError,
    403: AuthError,
    413: InputTooLongError,
    429: RateLimitedError,
}


def error_for(
    status: int, code: str | None, message: str, *, request_id: str | None, details: Mapping[str, Any]
) -> SIEError:
    """The exception for an answer that is not a 200."""
    kind = _BY_STATUS_AND_CODE.get((status, code)) or _BY_STATUS.get(status)
    if kind is None:
        by_hundred: dict[int, type[SIEError]] = {4: RequestError, 5: ServerError}
        kind = by_hundred.get(status // 100, ProtocolError)
    error = kind(message, code=code, status=status, request_id=request_id, details=details)
    if isinstance(error, ModelLoadFailedError):
        error.retryable = not error.permanent
    return error
