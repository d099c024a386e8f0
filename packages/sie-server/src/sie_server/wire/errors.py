"""The body of every error."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType


class ErrorDetail(Struct, frozen=True):
    """What went wrong, what to do."""

    code: str
    message: str
    error_class: Annotated[
        str | UnsetType, Meta(description="Only with MODEL_LOAD_FAILED, as what follows")
    ] = UNSET
    permanent: bool | UnsetType = UNSET
    attempts: int | UnsetType = UNSET


class ErrorBody(Struct, frozen=True):
    """Errors are always JSON; the same detail stands under two keys because clients read either."""

    detail: ErrorDetail
    error: ErrorDetail
    code: str
