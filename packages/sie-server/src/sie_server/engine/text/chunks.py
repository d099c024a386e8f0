"""Long documents as overlapping windows of tokens, each scored with the whole query.

A window is cut out of the document's own token ids, not tokenised again from a piece of text, so its tokens are exactly
those that the model would have read at that place; the characters it covers come from the tokenizer's offsets. Where a
template tokenises the document in one piece with what follows it, that cannot be: see `engine.prompt_chunks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from sie_server.engine.job import Chunk, Job
from sie_server.engine.text.tokenizer import TextTokenizer
from sie_server.errors import InvalidInput
from sie_server.models.batch import Ids

DEFAULT_OVERLAP = 64  # tokens; a quarter of the window where that is less


@dataclass(frozen=True)
class Chunking:
    """How to split: tokens that neighbouring windows share (None: the default), and windows per document at most."""

    overlap: int | None
    most: int


@dataclass(frozen=True)
class Chunks:
    """Windows of all documents in order; `cut[i]`: window i is of a document that has more than were allowed."""

    ids: list[Ids]
    chunks: list[Chunk]
    cut: list[bool]

    def add(self, ids: Ids, chunk: Chunk, cut: bool) -> None:
        """The next window."""
        self.ids.append(ids)
        self.chunks.append(chunk)
        self.cut.append(cut)


@runtime_checkable
class ChunkInput(Protocol):
    """A `TextInput` that can also split documents."""

    def chunk_job(
        self,
        query: str,
        documents: list[str],
        limit: int,
        chunking: Chunking,
        instruction: str | None = None,
    ) -> Job:
        """One result per window, in the order of `Job.chunks`; at most `limit` tokens per sequence."""
        ...


def split(
    tokenizer: TextTokenizer, documents: list[str], room: int, chunking: Chunking, prompt: str = ""
) -> Chunks:
    """Windows of at most `room` tokens; the tokens of `prompt` stand at the start of each.

    Raises:
        InvalidInput: the overlap leaves no token to move on by.
    """
    [(alone, _)], _ = tokenizer.encode_with_spans([prompt], room)
    room -= len(alone)
    overlap = overlap_of(chunking, room)
    most = len(alone) + most_tokens(chunking, room)
    encoded, cut = tokenizer.encode_with_spans([prompt + text for text in documents], most)
    result = Chunks([], [], [])
    for document, ((whole, spans), more) in enumerate(zip(encoded, cut, strict=True)):
        # a token may begin in the prompt and end in the text, as a space before a word: it is the text's
        own = sum(end <= len(prompt) for _, end in spans[: len(alone)])
        head, ids = whole[:own], whole[own:]
        spans = [_behind(prompt, span) for span in spans[own:]]
        for window, chunk in slices(document, documents[document], ids, spans, room, overlap):
            result.add(np.concatenate((head, window)), chunk, more)
    return result


def slices(
    document: int, text: str, ids: Ids, spans: Sequence[tuple[int, int]], room: int, overlap: int
) -> Iterator[tuple[Ids, Chunk]]:
    """The windows of one document, cut out of its ids."""
    starts = range(0, max(1, len(ids) - overlap), room - overlap)
    for index, start in enumerate(starts):
        window = slice(start, start + room)
        yield ids[window], Chunk(document, index, len(starts), *_characters(text, spans[window]))


def overlap_of(chunking: Chunking, room: int) -> int:
    """Tokens that neighbouring windows of `room` document tokens share.

    Raises:
        InvalidInput: so many that no token is left to move on by.
    """
    overlap = min(DEFAULT_OVERLAP, room // 4) if chunking.overlap is None else chunking.overlap
    if overlap >= room:
        raise InvalidInput(
            f"chunk_overlap is {overlap}, but a window has room for {room} tokens of a document; "
            "it has to be less - at `$.options.chunk_overlap`"
        )
    return overlap


def most_tokens(chunking: Chunking, room: int) -> int:
    """Tokens of a document that its windows cover at most."""
    return room + (chunking.most - 1) * (room - overlap_of(chunking, room))


def _behind(prompt: str, span: tuple[int, int]) -> tuple[int, int]:
    """Characters of the text alone, from those of prompt and text."""
    return max(0, span[0] - len(prompt)), max(0, span[1] - len(prompt))


def _characters(text: str, spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """From the first to after the last character; an empty document has the span 0, 0.

    Some tokenizers count the space before a word to its token, some do not; a span never begins or ends with one.
    """
    return without_spaces(text, min((s for s, _ in spans), default=0), max((e for _, e in spans), default=0))


def without_spaces(text: str, start: int, end: int) -> tuple[int, int]:
    """The same characters without spaces at either end; nothing but spaces is the empty span after them."""
    part = text[start:end]
    start += len(part) - len(part.lstrip())
    return start, start + len(part.strip())
