"""The sequences that a model reads for a score request, token by token (`POST /v1/inspect/{model}`).

With `options.token_scores` the model runs, and each document has the similarities of its tokens with the query's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec import UNSET, UnsetType, structs

from sie_server.engine.engine import Engine
from sie_server.engine.job import QUERY, Floats, Job, Work
from sie_server.engine.lora.adapter import Adapter
from sie_server.engine.text.slices import at_most
from sie_server.errors import InferenceError, InvalidInput
from sie_server.models.heads.late_interaction import TokenMatches
from sie_server.serving.finishing import item_id
from sie_server.serving.requests import truncation
from sie_server.serving.requests.scoring import ScorePlan
from sie_server.wire import (
    ChunkSpan,
    InspectedPassage,
    InspectedText,
    InspectResponse,
    Item,
    QueryTokens,
    TokenScores,
)

MOST_TOKENS = (
    250_000  # that are shown; each takes about 20 bytes of the response, and 200 until it is written
)
MOST_SIMILARITIES = 100_000  # each takes about 10 bytes of the response
DIGITS = 6  # of a similarity: more than a heat map needs, and a sum of 32 is exact to 2e-5


def inspect(plan: ScorePlan, adapter: Adapter | None = None) -> tuple[InspectResponse, Job]:
    """Tokenise as `plan` says, without running the model; blocking, for a tokeniser thread."""
    if plan.candidates.query is None:
        raise RuntimeError("only texts can be inspected")
    documents, shortened = plan.documents()
    with at_most(MOST_TOKENS):
        texts = plan.score_texts(plan.candidates.query, documents)
        job = plan.engine.tokenize_plain(texts, adapter=adapter)
    truncation.mark_shortened(job, shortened)
    inspection = _Inspection(plan.engine, plan.candidates.request.items, job)
    return inspection.response(plan.model, plan.limit), job


def check_token_scores(engine: Engine) -> None:
    """Raise InvalidInput if the scores of a model are not made of the similarities of tokens."""
    if not engine.matches_tokens:
        raise InvalidInput(
            "this model does not compare single tokens; only late-interaction models do (ColBERT and sie/mini-en); "
            "omit token_scores - at `$.options.token_scores`"
        )


def inspect_tokens(plan: ScorePlan, adapter: Adapter | None) -> tuple[InspectResponse, Job]:
    """As `inspect`, with a job whose results are the similarities of tokens.

    Raises:
        InvalidInput: there are too many similarities for a response.
    """
    shown, job = inspect(plan, adapter)
    assert shown.query  # a late-interaction model reads the query apart
    count = len(shown.query.token_ids) * sum(len(text.token_ids) for text in shown.items)
    if count > MOST_SIMILARITIES:
        raise InvalidInput(
            f"token_scores shows at most {MOST_SIMILARITIES:,} similarities (query tokens × document tokens), and this "
            f"request has {count:,}; send fewer or shorter items - at `$.items`"
        )
    job.outputs = ("token_scores",)
    return shown, job


def with_token_scores(shown: InspectResponse, job: Job) -> InspectResponse:
    """Add the results of the finished job of `inspect_tokens`.

    Raises:
        InferenceError: a score is not a finite number.
    """
    matches: list[TokenMatches] = job.results
    items = [
        structs.replace(text, token_scores=_token_scores(match, i))
        for i, (text, match) in enumerate(zip(shown.items, matches, strict=True))
    ]
    places, weights = matches[0].query_places.tolist(), matches[0].weights
    return structs.replace(shown, items=items, query_tokens=QueryTokens(places, _rounded(weights)))


def _token_scores(match: TokenMatches, index: int) -> TokenScores:
    score = match.score()
    if not math.isfinite(score):
        raise InferenceError(f"the model returned the score {score} for sequence {index}; check its weights")
    pooled = UNSET if match.pooled is None else match.pooled
    return TokenScores(match.places.tolist(), _rounded(match.similarities), score, pooled)


def _rounded(values: Floats) -> Any:
    return values.astype(np.float64).round(DIGITS).tolist()


@dataclass(frozen=True)
class _Inspection:
    """A job, and the model and items that it belongs to."""

    engine: Engine
    items: Sequence[Item]
    job: Job

    def response(self, model: str, limit: int) -> InspectResponse:
        """Describe every sequence of the job, in the order of the items and their chunks."""
        job = self.job
        query: InspectedText | UnsetType = UNSET
        texts: list[InspectedText] = []
        # equal sequences share one work
        places = [
            (place, work) for work in job.work for place in (work.index, *job.copies.get(work.index, ()))
        ]
        for place, work in sorted(places, key=lambda pair: pair[0]):
            if place == QUERY:
                query = self._text(work, None, job.query_truncated)
            elif job.blocks:
                texts.append(self._block(work, job.blocks[work.index]))
            else:
                texts.append(self._document(work, place))
        return InspectResponse(model, limit, job.query_truncated, texts, query)

    def _document(self, work: Work, place: int) -> InspectedText:
        chunk = self.job.chunks[place] if self.job.chunks else None
        index = chunk.document if chunk else place
        name = item_id(self.items, index)
        if chunk:
            span = ChunkSpan(chunk.start, chunk.end, chunk.index, chunk.count)
            return self._text(work, name, self.job.truncated[place], chunk=span)
        truncated = self.job.truncated[index]
        read_to = self.engine.read_to(self.items[index].text or "", work) if truncated else None
        return self._text(work, name, truncated, read_to=UNSET if read_to is None else read_to)

    def _block(self, work: Work, documents: range) -> InspectedText:
        *places, query_place = self.engine.marked(work)
        passages = [
            InspectedPassage(item_id(self.items, i), place, self.job.truncated[i])
            for i, place in zip(documents, places, strict=True)
        ]
        whole = self._text(work, None, any(passage.truncated for passage in passages))
        return structs.replace(whole, readout="marked", position=query_place, passages=passages)

    def _text(
        self,
        work: Work,
        name: str | None,
        truncated: bool,
        *,
        read_to: int | UnsetType = UNSET,
        chunk: ChunkSpan | UnsetType = UNSET,
    ) -> InspectedText:
        engine = self.engine
        ids: list[int] = work.tokens.ids.tolist()
        positions: dict[str, int] = {"first": 0, "last": len(ids) - 1}
        return InspectedText(
            item_id=name,
            text=engine.decode(ids),
            token_ids=ids,
            tokens=engine.tokens(ids),
            readout=engine.readout,
            position=positions.get(engine.readout, UNSET),
            truncated=truncated,
            read_to=read_to,
            chunk=chunk,
        )
