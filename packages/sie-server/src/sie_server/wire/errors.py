"""The body of every error response. Codes and retries: docs/http-api.md#errors."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType


class ErrorDetail(Struct, frozen=True):
    """The cause of an error and the next step."""

    code: str
    message: str
    error_class: Annotated[
        str | UnsetType, Meta(description="MODEL_LOAD_FAILED only: kind of the failure")
    ] = UNSET
    permanent: Annotated[
        bool | UnsetType, Meta(description="MODEL_LOAD_FAILED only: another attempt cannot succeed")
    ] = UNSET
    attempts: Annotated[
        int | UnsetType, Meta(description="MODEL_LOAD_FAILED only: loads attempted so far")
    ] = UNSET


class ErrorBody(Struct, frozen=True):
    """An error, always as JSON. `detail` and `error` are equal, because clients read either."""

    detail: ErrorDetail
    error: ErrorDetail
    code: str
