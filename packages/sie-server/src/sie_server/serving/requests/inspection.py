"""The sequences that a model would read for a score request, token by token (`POST /v1/inspect/{model}`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import UNSET, UnsetType, structs

from sie_server.engine.engine import Engine
from sie_server.engine.job import QUERY, Job, Work
from sie_server.engine.text.slices import at_most
from sie_server.serving.requests import truncation
from sie_server.serving.requests.ranking import item_id
from sie_server.serving.requests.scoring import ScorePlan
from sie_server.wire import ChunkSpan, InspectedPassage, InspectedText, InspectResponse, Item

MOST_TOKENS = (
    250_000  # that are shown; each takes about 20 bytes of the response, and 200 until it is written
)


def inspect(plan: ScorePlan) -> InspectResponse:
    """Tokenise as `plan` says, without running the model; blocking, for a tokeniser thread."""
    if plan.candidates.query is None:
        raise RuntimeError("only texts can be inspected")
    documents, shortened = plan.documents()
    with at_most(MOST_TOKENS):
        job = plan.engine.tokenize_plain(plan.score_texts(plan.candidates.query, documents))
    truncation.mark_shortened(job, shortened)
    return _Inspection(plan.engine, plan.candidates.request.items, job).response(plan.model, plan.limit)


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
