"""Every error a caller can meet, each with its HTTP status, its code and whether trying again helps.

    SIEError
    ├── InvalidInput 400            ├── ModelLoadFailed 502
    ├── InputTooLong 413            ├── ModelLoading 503 + Retry-After
    ├── Unauthorized 401            ├── QueueFull 503 + Retry-After
    ├── Forbidden 403               ├── ResourceExhausted 503 + Retry-After
    ├── NotFound 404                ├── InferenceError 500
    ├── MethodNotAllowed 405        ├── Conflict 409
    ├── ModelNotFound 404           ├── ClientGone 499
    └── AdapterNotFound 404

One handler (`api.app`) turns them into bodies; anything else becomes a 500 without its internals.
"""

from __future__ import annotations

from typing import ClassVar


class SIEError(Exception):
    """Base of all errors with a defined answer; `details` are extra keys of the error body."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "INTERNAL_ERROR"

    def __init__(self, message: str, *, retry_after_s: float | None = None, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.details = details


class InvalidInput(SIEError):
    """The body or an option is wrong; the message carries the path of the field, `$.items[3].text`."""

    status, code = 400, "INVALID_INPUT"


class InputTooLong(SIEError):
    """The body is larger than the server takes."""

    status, code = 413, "INPUT_TOO_LONG"


class Unauthorized(SIEError):
    """No API key, or one that is not known here."""

    status, code = 401, "UNAUTHORIZED"
    headers: ClassVar[dict[str, str]] = {"WWW-Authenticate": "Bearer"}


class Forbidden(SIEError):
    """The key lacks a scope, or an admin route was asked from elsewhere without keys."""

    status, code = 403, "FORBIDDEN"


class NotFound(SIEError):
    """No such route."""

    status, code = 404, "NOT_FOUND"


class MethodNotAllowed(SIEError):
    """The route exists, under another HTTP method."""

    status, code = 405, "METHOD_NOT_ALLOWED"


class ModelNotFound(SIEError):
    """The id is neither configured nor in the catalog."""

    status, code = 404, "MODEL_NOT_FOUND"


class Conflict(SIEError):
    """The model is being loaded, swapped or unloaded already, or is loaded from somewhere else."""

    status, code = 409, "CONFLICT"


class AdapterNotFound(SIEError):
    """The model has no LoRA adapter of that name; the base model's scores are never given instead."""

    status, code = 404, "ADAPTER_NOT_FOUND"


class ClientGone(SIEError):
    """The caller hung up; nobody reads this answer."""

    status, code = 499, "CLIENT_CLOSED_REQUEST"


class InferenceError(SIEError):
    """The model failed, or gave a score that is not a finite number."""

    status, code = 500, "INFERENCE_ERROR"


class ModelLoadFailed(SIEError):
    """The checkpoint cannot be fetched or is not one we can serve; says what to do."""

    status, code = 502, "MODEL_LOAD_FAILED"


class ModelLoading(SIEError):
    """The model is on its way; longer than the request may be held."""

    status, code = 503, "MODEL_LOADING"


class QueueFull(SIEError):
    """More tokens are waiting than the server admits, or it is shutting down."""

    status, code = 503, "QUEUE_FULL"


class ResourceExhausted(SIEError):
    """The device ran out of memory, or models that are in use leave none for another."""

    status, code = 503, "RESOURCE_EXHAUSTED"
