"""What a model would read for a score request, token by token, without running it (`POST /v1/inspect/{model}`)."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, UnsetType, structs

from sie_server.engine.engine import Engine
from sie_server.engine.job import QUERY, Job, Work
from sie_server.wire import ChunkSpan, InspectedPassage, InspectedText, InspectResponse, Item


def inspected(model: str, engine: Engine, items: Sequence[Item], job: Job, limit: int) -> InspectResponse:
    """Every sequence of the job, in the order of the items (and of their windows)."""
    query: InspectedText | UnsetType = UNSET
    texts: list[InspectedText] = []
    # equal sequences are one work
    places = [(place, work) for work in job.work for place in (work.index, *job.copies.get(work.index, ()))]
    for place, work in sorted(places, key=lambda pair: pair[0]):
        if place == QUERY:
            query = _text(engine, work, None, job.query_truncated)
        elif job.blocks:
            texts.append(_block(engine, items, job, work))
        else:
            texts.append(_document(engine, items, job, work, place))
    return InspectResponse(model, limit, job.query_truncated, texts, query)


def _document(engine: Engine, items: Sequence[Item], job: Job, work: Work, place: int) -> InspectedText:
    chunk = job.chunks[place] if job.chunks else None
    index = chunk.document if chunk else place
    item = items[index]
    name = _name(items, index)
    if chunk:
        span = ChunkSpan(chunk.start, chunk.end, chunk.index, chunk.count)
        return _text(engine, work, name, job.truncated[place], chunk=span)
    cut = job.truncated[index]
    read_to = engine.read_to(item.text or "", work) if cut else None
    return _text(engine, work, name, cut, read_to=UNSET if read_to is None else read_to)


def _block(engine: Engine, items: Sequence[Item], job: Job, work: Work) -> InspectedText:
    assert job.blocks is not None
    documents = job.blocks[work.index]
    *places, asked = engine.marked(work)
    passages = [
        InspectedPassage(_name(items, i), place, job.truncated[i])
        for i, place in zip(documents, places, strict=True)
    ]
    whole = _text(engine, work, None, any(passage.truncated for passage in passages))
    return structs.replace(whole, readout="marked", position=asked, passages=passages)


def _name(items: Sequence[Item], index: int) -> str:
    given = items[index].id
    return f"item-{index}" if given is None else given


def _text(
    engine: Engine,
    work: Work,
    name: str | None,
    truncated: bool,
    *,
    read_to: int | UnsetType = UNSET,
    chunk: ChunkSpan | UnsetType = UNSET,
) -> InspectedText:
    ids: list[int] = work.tokens.ids.tolist()
    place: dict[str, int] = {"first": 0, "last": len(ids) - 1}
    return InspectedText(
        item_id=name,
        text=engine.decode(ids),
        token_ids=ids,
        tokens=engine.tokens(ids),
        readout=engine.readout,
        position=place.get(engine.readout, UNSET),
        truncated=truncated,
        read_to=read_to,
        chunk=chunk,
    )
