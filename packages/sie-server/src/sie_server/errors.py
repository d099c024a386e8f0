"""All errors of the HTTP API: status, code and details. docs/http-api.md#errors says when each occurs.

    SIEError
    ├── InvalidInput 400            ├── ModelLoadFailed 502
    ├── InputTooLong 413            ├── ModelLoading 503 + Retry-After
    ├── Unauthorized 401            ├── QueueFull 503 + Retry-After
    ├── Forbidden 403               ├── ResourceExhausted 503 + Retry-After
    ├── NotFound 404                ├── InferenceError 500
    ├── MethodNotAllowed 405        ├── Conflict 409
    ├── ModelNotFound 404           ├── ClientGone 499
    ├── AdapterNotFound 404         ├── RequestTimeout 408
    ├── UnsupportedEncoding 415     └── RateLimited 429 + Retry-After
    └── HeadersTooLarge 431

`api.app.on_error` writes the response. Any other exception becomes a 500 that exposes no internals.

A message may quote values from outside. `shown` cuts each of them, and `SIEError` cuts the whole message, so that no
request can make an error response large.
"""

from __future__ import annotations

import json
import re
from typing import ClassVar

SHOWN = 80  # characters of a quoted value
MESSAGE_BYTES = 4000  # of a message in JSON; an error response contains it twice
PATH = 200  # characters of a quoted value from a file that stays whole, because it may be a path
QUOTE = re.compile(r"(?<!\w)'([^'\n]*)'(?!\w)")  # no apostrophe


def shown(value: object) -> str:
    """Return `repr(value)`, cut to about 80 characters, for a message that quotes a value from outside."""
    if isinstance(value, str | bytes):
        value = value[: SHOWN + 1]
    text = repr(value)
    return text if len(text) <= SHOWN + 2 else f"{text[: SHOWN + 1]}…{text[-1]}"


def cut(text: str, most: int = SHOWN) -> str:
    """Return a text from outside without quotes, cut to `most` characters."""
    return text if len(text) <= most else f"{text[:most]}…"


def cut_quotes(message: str) -> str:
    """Return a message about a file with every quoted value in it cut, because files quote values of any length."""
    return QUOTE.sub(lambda found: found[0] if len(found[1]) <= PATH else f"'{cut(found[1])}'", message)


def reason_at(error: Exception, path: str = "$") -> str:
    """Return the message of a `msgspec.ValidationError` about the value at `path`, with everything quoted cut."""
    reason, _, where = str(error).partition(" - at `$")
    at = path + cut(where.rstrip("`"))
    return cut(reason, 2 * SHOWN) if at == "$" else f"{cut(reason, 2 * SHOWN)} - at `{at}`"


def _bounded(message: str) -> str:
    """Cut a message to `MESSAGE_BYTES`, and escape surrogates, which JSON cannot contain."""
    message = message[:MESSAGE_BYTES].encode(errors="backslashreplace").decode()
    while len(json.dumps(message)) > MESSAGE_BYTES:
        message = cut(message, len(message) * 3 // 4)
    return message


ONEDNN_FAILED = "could not create a primitive"  # the memory for a kernel's machine code cannot be mapped
# messages of plain RuntimeErrors: of torch, the system, cuBLAS, C++ and Python's threads
NO_MEMORY = (
    "can't allocate memory",
    "Cannot allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA out of memory",
    "CUDA error: out of memory",  # outside of torch's allocator, a torch.AcceleratorError
    "bad alloc",
    "bad_alloc",
    "can't start new thread",
    ONEDNN_FAILED,
)


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on the device or in the process: the same work may succeed later."""
    # torch.OutOfMemoryError by its name, as this module is loaded without torch
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or any(words in str(error) for words in NO_MEMORY)


class ConfigError(Exception):
    """A key, value or file with which the server cannot start. The user sees the message."""


class SIEError(Exception):
    """Base class of all errors that have a status and a code. `details` are extra keys of the error body."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "INTERNAL_ERROR"

    def __init__(self, message: str, *, retry_after_s: float | None = None, **details: object) -> None:
        message = _bounded(message)
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.details = details


class InvalidInput(SIEError):
    """The body or an option is invalid. The message contains the path of the field, `$.items[3].text`."""

    status, code = 400, "INVALID_INPUT"


class InputTooLong(SIEError):
    """The body is larger than `max_body_mb`."""

    status, code = 413, "INPUT_TOO_LONG"


class UnsupportedEncoding(SIEError):
    """The body is compressed in a way that the server cannot read."""

    status, code = 415, "UNSUPPORTED_ENCODING"
    headers: ClassVar[dict[str, str]] = {"Accept-Encoding": "gzip, deflate"}


class RequestTimeout(SIEError):
    """The headers or the body did not arrive in time (`header_timeout_s`, `body_timeout_s`)."""

    status, code = 408, "REQUEST_TIMEOUT"


class RateLimited(SIEError):
    """The caller's API key has reached one of its limits. `headers` describe them."""

    status, code = 429, "RATE_LIMITED"
    headers: dict[str, str]  # set by the middleware that knows the limits


class HeadersTooLarge(SIEError):
    """The request line and headers, or the trailers, are larger than 64 KiB or more than 200."""

    status, code = 431, "HEADERS_TOO_LARGE"


class Unauthorized(SIEError):
    """The API key is missing or unknown."""

    status, code = 401, "UNAUTHORIZED"
    headers: ClassVar[dict[str, str]] = {"WWW-Authenticate": "Bearer"}


class Forbidden(SIEError):
    """The API key lacks a scope, or an admin request came from another machine and no keys are configured."""

    status, code = 403, "FORBIDDEN"


class NotFound(SIEError):
    """The route does not exist."""

    status, code = 404, "NOT_FOUND"


class MethodNotAllowed(SIEError):
    """The route does not accept this HTTP method."""

    status, code = 405, "METHOD_NOT_ALLOWED"


class ModelNotFound(SIEError):
    """The model id is neither configured nor in the catalog."""

    status, code = 404, "MODEL_NOT_FOUND"


class Conflict(SIEError):
    """Another load, swap or unload of the model is running, or the model is loaded from another source."""

    status, code = 409, "CONFLICT"


class AdapterNotFound(SIEError):
    """The model has no LoRA adapter of that name. The base model never answers in its place."""

    status, code = 404, "ADAPTER_NOT_FOUND"


class ClientGone(SIEError):
    """The client disconnected, so the response is not read; the code appears in metrics only."""

    status, code = 499, "CLIENT_CLOSED_REQUEST"


class InferenceError(SIEError):
    """The forward pass failed or returned a number that is not finite."""

    status, code = 500, "INFERENCE_ERROR"


class ModelLoadFailed(SIEError):
    """The checkpoint cannot be fetched or is not supported. The message contains the next step."""

    status, code = 502, "MODEL_LOAD_FAILED"


class ModelLoading(SIEError):
    """The model or adapter is still loading after `load_wait_s`."""

    status, code = 503, "MODEL_LOADING"


class QueueFull(SIEError):
    """The queue, all connections or the memory for bodies are in use, or the server is stopping."""

    status, code = 503, "QUEUE_FULL"


class ResourceExhausted(SIEError):
    """The device is out of memory, or models in use occupy the memory budget."""

    status, code = 503, "RESOURCE_EXHAUSTED"


def codes() -> list[str]:
    """Return the codes of all errors, sorted."""
    return sorted({SIEError.code, *(kind.code for kind in SIEError.__subclasses__())})


def no_memory() -> ResourceExhausted:
    """Return the error for a request whose handling ran out of memory outside a forward pass."""
    return ResourceExhausted(
        "the server ran out of memory for this request; try again later", retry_after_s=5
    )
