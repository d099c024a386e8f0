"""The end of a score request: scores of documents → ranked entries, warnings and usage. Pure, and without torch.

A cluster may have the documents of one request scored by several replicas. `joined` puts such parts together again, and
`finish` makes the same response of them as of one part.

The sigmoid is computed in double precision, so that different logits never tie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from msgspec import UNSET, UnsetType, structs

from sie_server.catalog import Calibration
from sie_server.engine.text.slices import most_chars
from sie_server.errors import InferenceError
from sie_server.serving.activation import activate
from sie_server.wire import (
    ChunkSpan,
    Document,
    Item,
    Options,
    ScoreEntry,
    ScoreRequest,
    ScoreResponse,
    ScoreType,
    Usage,
)


@dataclass(frozen=True)
class DocumentScores:
    """Per document: the raw value, whether it was cut, and its best chunk if the documents were split."""

    raw: Sequence[float]
    truncated: Sequence[bool]
    chunks: Sequence[ChunkSpan] | None = None


@dataclass(frozen=True)
class Reading:
    """How the model reads the texts of a request. It is equal in all parts."""

    model: str  # the name in the request
    options: Options
    activation: str | Calibration
    score_type: ScoreType
    limit: int  # tokens per sequence
    query_limit: int | None = None  # tokens; None: the documents' limit
    paired: bool = False  # query and document share the limit
    side: str = "end"  # of a text, that is cut
    windows: int | None = None  # of a document, at most; None: documents are not split
    texts: bool = True  # the candidates are texts, not vectors
    warnings: tuple[str, ...] = ()  # about the options


@dataclass(frozen=True)
class Part:
    """The scores of some documents of a request."""

    reading: Reading
    documents: DocumentScores
    unread: Sequence[
        bool
    ]  # documents of which characters remain, though fewer tokens than the limit were read
    query_truncated: bool
    full: bool  # a sequence was cut at the limit
    document_tokens: int  # in the sequences of the documents, which may include the query
    query_tokens: int  # in a sequence of the query alone


def joined(parts: Sequence[Part], places: Sequence[Sequence[int]]) -> Part:
    """Return the parts of a request as one; `places[i]` are the indices of the i-th part's documents."""
    order = sorted((index, part, i) for part, own in enumerate(places) for i, index in enumerate(own))

    def each(lists: Sequence[Sequence[bool]]) -> list[bool]:
        return [lists[part][i] for _, part, i in order]

    documents = [part.documents for part in parts]
    chunks = [one.chunks for one in documents]
    whole = DocumentScores(
        [documents[part].raw[i] for _, part, i in order],
        each([one.truncated for one in documents]),
        None if None in chunks else [chunks[part][i] for _, part, i in order],  # type: ignore[index]
    )
    return replace(
        parts[0],
        documents=whole,
        unread=each([part.unread for part in parts]),
        query_truncated=any(part.query_truncated for part in parts),
        full=any(part.full for part in parts),
        document_tokens=sum(part.document_tokens for part in parts),
    )


def finish(part: Part, request: ScoreRequest) -> ScoreResponse:
    """Rank all documents of a request.

    Raises:
        InferenceError: a score is not a finite number.
    """
    reading = part.reading
    top_n = reading.options.top_n
    return ScoreResponse(
        reading.model,
        request.query.id,
        rank(request.items, part.documents, reading.activation, reading.options),
        Usage(part.document_tokens + part.query_tokens),
        reading.score_type,
        part.query_truncated or UNSET,
        warnings_of(part, request) or UNSET,
        top_n=top_n if top_n and top_n < len(request.items) else UNSET,
    )


def finish_each(parts: Sequence[Part], requests: Sequence[ScoreRequest]) -> ScoreResponse:
    """Return the responses to several queries as one; warnings about texts name the first item of their query.

    Raises:
        InferenceError: a score is not a finite number.
    """
    responses = [finish(part, request) for part, request in zip(parts, requests, strict=True)]
    if len(responses) == 1:
        return responses[0]
    warnings = list(parts[0].reading.warnings)
    for request, response in zip(requests, responses, strict=True):
        first = item_id(request.items, 0)
        own = (response.warnings or [])[len(parts[0].reading.warnings) :]
        warnings += [f"item {first}: {text}" for text in own]
    return structs.replace(
        responses[0],
        query_id=None,
        scores=[entry for response in responses for entry in response.scores],
        usage=Usage(sum(response.usage.input_tokens for response in responses)),
        query_truncated=any(response.query_truncated is True for response in responses) or UNSET,
        warnings=warnings or UNSET,
    )


def rank(
    items: Sequence[Item], documents: DocumentScores, activation: str | Calibration, options: Options
) -> list[ScoreEntry]:
    """Return entries in order of relevance, ties in input order.

    Raises:
        InferenceError: a score is not a finite number; names the item.
    """
    raw, truncated, chunks = documents.raw, documents.truncated, documents.chunks
    return [
        ScoreEntry(
            item_id=item_id(items, i),
            score=_score(raw[i], activation),
            rank=place,
            truncated=True if truncated[i] else UNSET,
            logit=raw[i] if options.return_logits else UNSET,
            chunk=chunks[i] if chunks else UNSET,
            document=_document(items[i]) if options.return_documents else UNSET,
        )
        for place, i in enumerate(order_of(raw)[: options.top_n])
    ]


def order_of(raw: Sequence[float]) -> list[int]:
    """Return the indices of documents in order of relevance, ties in input order.

    Raises:
        InferenceError: a score is not a finite number; names the item.
    """
    for i, value in enumerate(raw):
        if not math.isfinite(value):
            raise InferenceError(f"the model returned the score {value} for $.items[{i}]; check its weights")
    # Sorted by the raw value, because a sigmoid rounds large logits to the same number.
    return sorted(range(len(raw)), key=lambda i: -raw[i])


def scores_of(part: Part) -> list[float]:
    """Return the score of each document, in the order of the request."""
    return [_score(value, part.reading.activation) for value in part.documents.raw]


def _score(raw: float, activation: str | Calibration) -> float:
    if isinstance(activation, Calibration):
        return activation.probability(raw)
    return activate(raw, activation)


def item_id(items: Sequence[Item], index: int) -> str:
    """The caller's id of an item, else `item-INDEX`."""
    given = items[index].id
    return f"item-{index}" if given is None else given


def _document(item: Item) -> Document | UnsetType:
    """Return the text of an item; an item without text (token vectors, for example) has none to return."""
    return UNSET if item.text is None else Document(item.text)


# ── warnings ──


def warnings_of(part: Part, request: ScoreRequest) -> list[str]:
    """Return the warnings about options and truncated texts."""
    reading, truncated = part.reading, part.documents.truncated
    warnings = list(reading.warnings)
    if part.query_truncated:
        warnings.append(query_warning(reading, len(request.query.text or ""), full=part.full))
    if reading.windows:
        return warnings + _window_warnings(truncated, reading.windows)
    if not reading.texts:
        return warnings
    most = reading.options.max_document_tokens
    return warnings + text_warnings(truncated, part.unread, reading.limit, reading.side, most)


def query_warning(reading: Reading, characters: int, *, full: bool) -> str:
    """Return the warning for a query with `characters` characters that was truncated.

    Some models have a limit of their own for queries. `full`: a sequence was cut at the limit.
    """
    own = reading.query_limit or reading.limit
    if characters > most_chars(own) and not (reading.paired and full):
        return f"the query was cut: only its first {most_chars(own):,} characters are read"
    if reading.query_limit:
        return f"the query was cut: it is longer than the {own} tokens that this model reads of a query"
    if not reading.paired:
        return f"the query was cut: it is longer than max_seq_length {reading.limit}"
    return (
        f"the query was cut in one or more pairs: with the document, it is longer than max_seq_length "
        f"{reading.limit}"
    )


def text_warnings(
    truncated: Sequence[bool],
    unread: Sequence[bool],
    limit: int,
    side: str,
    max_document_tokens: int | None = None,
) -> list[str]:
    """Return a warning for each reason why texts were truncated.

    Most are longer than the limit of tokens. A text with few tokens per character ends where reading ends.
    """
    wanted, limits = min(limit, max_document_tokens or limit), f"max_seq_length {limit}"
    if max_document_tokens:
        limits += f" or max_document_tokens {max_document_tokens}"
    longer, count = sum(truncated) - sum(unread), len(truncated)
    warnings = []
    if longer:
        warnings.append(f"{longer} of {count} texts are longer than {limits} and were cut at the {side}")
    if any(unread):
        warnings.append(
            f"{sum(unread)} of {count} texts have more than {most_chars(wanted):,} characters, of which the rest was "
            f"not read for {wanted} tokens"
        )
    return warnings


def _window_warnings(truncated: Sequence[bool], most: int) -> list[str]:
    """The warning for documents with more windows than are read, if there are any."""
    if not any(truncated):
        return []
    return [
        f"{sum(truncated)} of {len(truncated)} documents have more than {most} chunks (max_chunks), or more characters "
        "than are read for them; the rest was not read"
    ]
