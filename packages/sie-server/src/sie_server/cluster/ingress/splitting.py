"""Large requests: their documents are scored by several idle replicas, and the response is that of one replica."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from math import ceil
from typing import Any

from msgspec import structs

from sie_server.cluster.ingress.pool import Pool
from sie_server.cluster.outcomes import Outcome, charge_parts
from sie_server.serving.finishing import finish, joined
from sie_server.serving.metrics import RequestTiming
from sie_server.wire import ScoreRequest, ScoreResponse

PAIR = 200  # characters that a document costs in addition to its own: the query and the work around it


def shares(texts: Sequence[str], replicas: int, per_part: int) -> list[list[int]]:
    """Divide documents into parts of similar length, and return their indices.

    Equal texts are in one part: the last bits of a score depend on the batch, and equal texts must tie.
    """
    count = min(replicas, ceil(len(texts) / per_part))
    equal: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        equal.setdefault(text, []).append(i)
    parts: list[list[int]] = [[] for _ in range(count)]
    sizes = [0] * count
    for text in sorted(equal, key=lambda text: -len(text)):
        lightest = sizes.index(min(sizes))
        parts[lightest] += equal[text]
        sizes[lightest] += PAIR + len(text)
    return [sorted(part) for part in parts if part]


async def score_in_parts(
    pool: Pool, id: str, model: str, request: ScoreRequest, timing: RequestTiming, per_part: int
) -> ScoreResponse | None:
    """Score a request on several replicas; `id` is that of the model without an adapter.

    None: one replica should score it. The request is too small, too few replicas are idle, the model reads the texts of
    a request together, the parts came from two versions of the model, or a part failed. In the last case the single
    replica fails too, with an error that names the right item.
    """
    texts = [item.text for item in request.items if item.text is not None]
    if timing.most_tokens is not None or len(texts) < len(request.items) or len(texts) <= per_part:
        return None
    idle = pool.idle(id)
    places = shares(texts, len(idle), per_part) if len(idle) > 1 else []
    if len(places) < 2:
        return None
    requests = [structs.replace(request, items=[request.items[i] for i in part]) for part in places]
    outcomes = await _all(
        [
            pool.ask(id, "score_part", timing, model, part, prefer=replica)
            for part, replica in zip(requests, idle, strict=False)
        ]
    )
    if any(one.failure or one.value is None for one in outcomes):
        return None
    if len({one.version for one in outcomes}) > 1:
        pool.metrics.stale.inc()
        return None
    charge_parts(outcomes, timing)
    return finish(joined([one.value for one in outcomes], places), request)


async def _all(calls: Sequence[Coroutine[Any, Any, Outcome]]) -> list[Outcome]:
    """Await calls that run side by side. If one raises, or the caller leaves, all are cancelled."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
