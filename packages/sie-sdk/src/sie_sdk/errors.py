"""The exceptions that the client raises.

    SIEError
    ├── SIEConnectionError          no answer: refused, reset, cut short
    │   └── SIETimeoutError         no answer in time; the server may still be working on it
    ├── RequestError                the request is invalid (other 4xx, or rejected before sending)
    │   ├── AuthError               401, 403
    │   ├── InputTooLongError       413, or 400 INPUT_TOO_LONG
    │   └── ModelNotFoundError      404 MODEL_NOT_FOUND
    ├── RateLimitedError            429, until the deadline
    ├── ServerError                 any other 5xx
    │   ├── InferenceError          500 INFERENCE_ERROR
    │   ├── ModelLoadFailedError    502 MODEL_LOAD_FAILED
    │   ├── ModelLoadingError       503 MODEL_LOADING, until the deadline
    │   ├── QueueFullError          503 QUEUE_FULL, until the deadline
    │   └── ResourceExhaustedError  503 RESOURCE_EXHAUSTED, after its retries
    └── ProtocolError               a response that does not follow docs/http-api.md

`error_for` looks up the class by the status and the code of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class SIEError(Exception):
    """Base class of the client's exceptions.

    message: a description of the error. code: the server's code, None if it sent none. status: the HTTP status, None
    without an answer. request_id: identifies the request in the server's logs. retryable: True for a transient
    condition; the client has already retried within its limits. details: the server's error map.
    """

    transient: ClassVar[bool] = False

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
        self.retryable = self.transient if retryable is None else retryable
        self.details: dict[str, Any] = dict(details or {})

    def __str__(self) -> str:
        request = f"request {self.request_id}" if self.request_id else ""
        label = " ".join(str(part) for part in (self.status, self.code) if part is not None)
        origin = ", ".join(part for part in (label, request) if part)
        return f"{self.message} ({origin})" if origin else self.message


class SIEConnectionError(SIEError):
    """The server could not be reached, or the connection broke."""


class SIETimeoutError(SIEConnectionError):
    """The server did not answer in time. Not retried, because it may still be working on the first request."""


class RequestError(SIEError):
    """The request is invalid; sending it again would fail in the same way."""


class AuthError(RequestError):
    """The API key is missing or not accepted."""


class InputTooLongError(RequestError):
    """The input is longer than the model or the server accepts."""


class ModelNotFoundError(RequestError):
    """The server does not know this model; the message suggests similar names."""


class RateLimitedError(SIEError):
    """The caller is over its rate limit."""

    transient = True


class ServerError(SIEError):
    """The server failed."""


class InferenceError(ServerError):
    """The model failed on this input."""


class ModelLoadFailedError(ServerError):
    """The model cannot be loaded."""

    @property
    def error_class(self) -> str | None:
        """The class of the failure on the server."""
        return self.details.get("error_class")

    @property
    def permanent(self) -> bool:
        """True when the server will not try again."""
        return self.details.get("permanent") is not False

    @property
    def attempts(self) -> int | None:
        """The number of times that the server tried to load the model."""
        return self.details.get("attempts")


class ModelLoadingError(ServerError):
    """The model was still loading at the deadline."""

    transient = True


class QueueFullError(ServerError):
    """The server rejected requests because its queue was full, until the deadline."""

    transient = True


class ResourceExhaustedError(ServerError):
    """The device is out of memory for this request."""

    transient = True


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
# codes of the server's 5xx answers; a 5xx with none of them and without the server's version comes from a proxy
CODES = frozenset(code for status, code in _BY_STATUS_AND_CODE if status >= 500) | {
    "INTERNAL_ERROR",
    "LORA_LOADING",
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
    """Return the exception for an answer other than 200."""
    kind = _BY_STATUS_AND_CODE.get((status, code)) or _BY_STATUS.get(status)
    if kind is None:
        by_hundred: dict[int, type[SIEError]] = {4: RequestError, 5: ServerError}
        kind = by_hundred.get(status // 100, ProtocolError)
    error = kind(message, code=code, status=status, request_id=request_id, details=details)
    if isinstance(error, ModelLoadFailedError):
        error.retryable = not error.permanent
    return error
