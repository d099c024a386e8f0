"""Limits of API keys, in the file of keys and in responses, and their usage."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

SLOWEST, FASTEST = 0.01, 1e6  # requests per second
MOST_CONCURRENT = 100_000
FEWEST_TOKENS, MOST_TOKENS = (
    10,
    10**12,
)  # a request of the fewest tokens is smaller than any that scores a text


class KeyLimits(Struct, frozen=True, forbid_unknown_fields=True):
    """The limits of one API key, per server process. Null: unlimited."""

    requests_per_second: Annotated[float, Meta(ge=SLOWEST, le=FASTEST)] | None = None
    burst: (
        Annotated[int, Meta(ge=1, le=int(FASTEST), description="Requests that may come at once")] | None
    ) = None
    tokens_per_minute: Annotated[int, Meta(ge=FEWEST_TOKENS, le=MOST_TOKENS)] | None = None
    concurrent_requests: Annotated[int, Meta(ge=1, le=MOST_CONCURRENT)] | None = None


class KeyRefusals(Struct, frozen=True):
    """Requests that were refused because of a limit, by the limit."""

    requests: Annotated[int, Meta(description="`requests_per_second`")] = 0
    concurrent: Annotated[int, Meta(description="`concurrent_requests`")] = 0
    tokens: Annotated[int, Meta(description="`tokens_per_minute`")] = 0
    too_large: Annotated[int, Meta(description="More tokens than `tokens_per_minute`")] = 0


class KeyUsage(Struct, frozen=True):
    """The use of one API key since the server started."""

    name: str
    scopes: list[str]
    requests: Annotated[int, Meta(description="All requests with the key, the refused ones included")]
    tokens: int
    refused: KeyRefusals
    in_progress: int
    requests_left: Annotated[int | None, Meta(description="Requests that may come at once now")]
    tokens_left: Annotated[int | None, Meta(description="Negative: a debt")]
    limits: KeyLimits


class KeyList(Struct, frozen=True):
    """The API keys of the server, without the keys themselves."""

    keys: list[KeyUsage]
