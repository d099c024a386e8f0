"""Long documents as overlapping windows of tokens, each scored with the whole query.

A window is a slice of the document's own token ids, not a piece of text tokenised again: its tokens are exactly those
that the model would read at that place. Its characters come from the tokenizer's offsets. A template that tokenises the
document together with the text after it does not allow this: see `engine.kinds.prompted`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sie_server.engine.job import Chunk, Chunking
from sie_server.engine.text.reading import Spans
from sie_server.engine.text.slices import count_sequence
from sie_server.engine.text.tokenizer import TextTokenizer
from sie_server.errors import InvalidInput
from sie_server.models.batch import Ids

DEFAULT_OVERLAP = 64  # tokens, but at most a quarter of the window


@dataclass(frozen=True)
class Chunks:
    """The windows of all documents, in order."""

    ids: list[Ids]
    chunks: list[Chunk]
    cut: list[bool]  # the window's document has more text than its windows cover

    def add(self, ids: Ids, chunk: Chunk, cut: bool) -> None:
        """Append a window."""
        count_sequence(len(ids))
        self.ids.append(ids)
        self.chunks.append(chunk)
        self.cut.append(cut)


def split(
    tokenizer: TextTokenizer, documents: list[str], room: int, chunking: Chunking, prompt: str = ""
) -> Chunks:
    """Split documents into windows of at most `room` tokens, each starting with the tokens of `prompt`.

    Raises:
        InvalidInput: the overlap is as large as a window.
    """
    alone = len(tokenizer.read([prompt], room)[0].ids)
    room -= alone
    overlap = overlap_of(chunking, room)
    most = alone + most_tokens(chunking, room)
    result = Chunks([], [], [])
    for document, found in enumerate(tokenizer.read_each(documents, most, prompt)):
        # a token that begins in the prompt and ends in the text, such as a space and a word, belongs to the text
        own = int((found.spans[:alone, 1] <= len(prompt)).sum())
        head, ids = found.ids[:own], found.ids[own:]
        spans = np.maximum(found.spans[own:] - len(prompt), 0)
        for window, chunk in windows_of(document, documents[document], ids, spans, room, overlap):
            result.add(np.concatenate((head, window)), chunk, found.cut)
    return result


def windows_of(
    document: int, text: str, ids: Ids, spans: Spans, room: int, overlap: int
) -> Iterator[tuple[Ids, Chunk]]:
    """Yield the windows of a document as slices of its ids."""
    starts = range(0, max(1, len(ids) - overlap), room - overlap)
    for index, start in enumerate(starts):
        window = slice(start, start + room)
        yield ids[window], Chunk(document, index, len(starts), *_characters(text, spans[window]))


def overlap_of(chunking: Chunking, room: int) -> int:
    """Return how many tokens neighbouring windows of `room` document tokens share.

    Raises:
        InvalidInput: the overlap is as large as a window.
    """
    overlap = min(DEFAULT_OVERLAP, room // 4) if chunking.overlap is None else chunking.overlap
    if overlap >= room:
        raise InvalidInput(
            f"chunk_overlap must be below {room}, the number of document tokens in a window, got {overlap} "
            "- at `$.options.chunk_overlap`"
        )
    return overlap


def most_tokens(chunking: Chunking, room: int) -> int:
    """Return how many tokens of a document its windows can cover."""
    return room + (chunking.most - 1) * (room - overlap_of(chunking, room))


def _characters(text: str, spans: Spans) -> tuple[int, int]:
    """Return the span of all `spans` together, without spaces at its ends; (0, 0) for an empty document.

    Some tokenizers include the space before a word in the word's token, some do not.
    """
    if not len(spans):
        return without_spaces(text, 0, 0)
    return without_spaces(text, int(spans[:, 0].min()), int(spans[:, 1].max()))


def without_spaces(text: str, start: int, end: int) -> tuple[int, int]:
    """Shrink a span to exclude spaces at its ends; a span of spaces becomes the empty span after them."""
    part = text[start:end]
    start += len(part) - len(part.lstrip())
    return start, start + len(part.strip())
