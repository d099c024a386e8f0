"""Failed loads: the error that callers get, and how long the server waits before it tries again."""

from __future__ import annotations

import logging

from sie_server.errors import ModelLoadFailed, ModelLoading, ResourceExhausted, SIEError, out_of_memory
from sie_server.panics import NativePanic

log = logging.getLogger("sie_server.loading")
MESSAGE_CHARS = 2000
# Seconds during which the error of a failed load is the answer. After that the next request starts a new load.
PERMANENT_S, TRANSIENT_S = 60.0, 10.0


class BudgetExhausted(ResourceExhausted):
    """Models that are in use or pinned leave too little of the memory budget."""


def as_load_error(name: str, error: Exception, retry_after_s: float = 5.0) -> SIEError:
    """Turn any exception of a load into the error for the caller, without references to the failed frames."""
    if isinstance(error, SIEError):
        return error
    if out_of_memory(error):
        return ResourceExhausted(
            f"the device ran out of memory while loading {name!r}; unload another model or lower memory_budget_mb",
            retry_after_s=retry_after_s,
        )
    if isinstance(error, NativePanic):  # the same files would cause it again
        return ModelLoadFailed(
            f"cannot load {name}: {error}", error_class="NativePanic", permanent=True, attempts=1
        )
    log.error("unexpected error while loading %s", name, exc_info=error)
    kind = type(error).__name__
    return ModelLoadFailed(f"cannot load {name}: {kind}", error_class=kind, permanent=False, attempts=1)


def cool_down_s(error: SIEError) -> float:
    """Return the seconds before a failed load is tried again.

    Out-of-memory failures are not cached, because memory may become free at any time, and neither are loads that an
    operator has ended.
    """
    if isinstance(error, BudgetExhausted | ModelLoading):
        return 0.0
    return PERMANENT_S if error.details.get("permanent") else TRANSIENT_S


def copy_of(error: SIEError) -> SIEError:
    """Return the same error without its traceback, whose frames keep the tensors of the failed load alive.

    The message may quote a foreign file. It is cut, and becomes valid Unicode, because `GET /v1/models` shows it.
    """
    message = error.message.encode("utf-8", "backslashreplace").decode()
    if len(message) > MESSAGE_CHARS:
        message = f"{message[:MESSAGE_CHARS]}…"
    return type(error)(message, retry_after_s=error.retry_after_s, **error.details)
