"""The deadline of a request: its work ends then, because its caller no longer wants the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

from sie_server.errors import QueueFull
from sie_server.serving.metrics import RequestTiming
from sie_server.wire import Options


@asynccontextmanager
async def in_time(options: Options, timing: RequestTiming) -> AsyncIterator[None]:
    """End the work of the block at the request's deadline.

    Raises:
        QueueFull: the deadline is over.
    """
    if options.deadline_ms is not None:
        timing.set_deadline(options.deadline_ms)
    left = None if timing.deadline is None else max(0.0, timing.deadline - perf_counter())
    limit = asyncio.timeout(left)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise QueueFull(
            "the deadline of the request was over before its answer; try again later or with a later deadline",
            retry_after_s=1,
        ) from None
