"""Query and documents, or windows of long documents, → the filled templates of a causal reranker.

Where a template's part ends with the document, a window is cut out of the document's own ids. Where text follows in
the same part, the two are tokenised as one string and have no ids of their own: there a window is a piece of the
document's text, cut between two tokens and put into the template as if it were a document.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from sie_server.engine.job import Chunk, Job, build_job
from sie_server.engine.text.chunks import (
    Chunking,
    Chunks,
    most_tokens,
    overlap_of,
    slices,
    without_spaces,
)
from sie_server.engine.text.prefix import share_prefix
from sie_server.engine.text.prompt_tokenizer import Frame, PromptTokenizer
from sie_server.errors import InvalidInput
from sie_server.models.batch import Ids, Tokens


class PromptInput:
    """Causal rerankers read a filled template; what all documents' prompts begin with is computed once."""

    def __init__(self, tokenizer: PromptTokenizer, *, share: bool) -> None:
        self._tokenizer, self._share = tokenizer, share

    def score_job(self, query: str, documents: list[str], limit: int, instruction: str | None = None) -> Job:
        """One result per document; at most `limit` tokens per prompt."""
        return self._job(*self._tokenizer.prompts(query, documents, instruction, limit))

    def chunk_job(
        self,
        query: str,
        documents: list[str],
        limit: int,
        chunking: Chunking,
        instruction: str | None = None,
    ) -> Job:
        """The same for every window of the documents."""
        frame = self._tokenizer.frame(query, instruction, limit)
        split = _split_ids if frame.blank.ends_with("document") else _split_texts
        parts = split(frame, self._tokenizer, documents, chunking)
        job = self._job([frame.whole(part) for part in parts.ids], parts.cut, frame.query_cut)
        job.chunks = parts.chunks
        return job

    def _job(self, sequences: list[Tokens], cut: list[bool], query_cut: bool) -> Job:
        prefix, sequences = share_prefix(sequences) if self._share else (None, sequences)
        job = build_job(("score",), sequences, cut)
        job.prefix, job.query_truncated = prefix, query_cut
        return job


def _split_ids(frame: Frame, tokenizer: PromptTokenizer, documents: list[str], chunking: Chunking) -> Chunks:
    """Windows of ids, each behind the ids of the text before the document."""
    literal = len(frame.part(""))  # characters
    texts = [frame.part(text) for text in documents]
    most = frame.around + most_tokens(chunking, frame.room - frame.around)
    encoded, cut = tokenizer.encode_with_spans(texts, most)
    result = Chunks([], [], [])
    for number, ((ids, spans), more) in enumerate(zip(encoded, cut, strict=True)):
        # a token that is partly the document's is the document's; so `before` may differ by the literal's last space
        before = next((i for i, (_, end) in enumerate(spans) if end > literal), len(ids))
        own = [(max(0, start - literal), end - literal) for start, end in spans[before:]]
        room = frame.room - before
        overlap = overlap_of(chunking, room)
        for window, chunk in slices(number, documents[number], ids[before:], own, room, overlap):
            result.add(np.concatenate((ids[:before], window)), chunk, more)
    return result


def _split_texts(
    frame: Frame, tokenizer: PromptTokenizer, documents: list[str], chunking: Chunking
) -> Chunks:
    """Windows of text, each put into the template as a document of its own."""
    room = frame.room - frame.around
    overlap = overlap_of(chunking, room)
    encoded, cut = tokenizer.encode_with_spans(documents, most_tokens(chunking, room))
    result = Chunks([], [], [])
    for number, ((_, spans), more) in enumerate(zip(encoded, cut, strict=True)):
        cutter = _TextCutter(frame, tokenizer, documents[number], spans, whole=not more)
        windows, left = cutter.windows(room, overlap, chunking.most)
        for index, (ids, start, end) in enumerate(windows):
            span = without_spaces(documents[number], start, end)
            result.add(ids, Chunk(number, index, len(windows), *span), more or left)
    return result


class _TextCutter:
    """Cuts one document's text at places between its tokens."""

    def __init__(
        self,
        frame: Frame,
        tokenizer: PromptTokenizer,
        text: str,
        spans: list[tuple[int, int]],
        *,
        whole: bool,
    ) -> None:
        self._frame, self._tokenizer, self._text = frame, tokenizer, text
        # places are counted in tokens; one character may be several tokens, and is not cut
        inner = [i for i in range(1, len(spans)) if spans[i][0] >= spans[i - 1][1]]
        self._places = sorted({0, *inner, len(spans)})
        ends = [0] + [spans[place - 1][1] for place in self._places[1:]]
        # spaces that no token covers go with what follows them; after the last token, with it
        self._characters = [*ends[:-1], len(text)] if whole else ends

    def windows(self, room: int, overlap: int, most: int) -> tuple[list[tuple[Ids, int, int]], bool]:
        """Ids and characters [start, end) of at most `most` windows, and whether something is left.

        Neighbours share `overlap` tokens, or a little more where a place between two tokens is inside a character.
        """
        found: list[tuple[Ids, int, int]] = []
        start, last = 0, len(self._places) - 1
        while len(found) < most:
            ids, end = self._window(start, room)
            found.append((ids, self._characters[start], self._characters[end]))
            if end == last:
                return found, False
            start = max(start + 1, self._at_most(self._places[end] - overlap))
        return found, True

    def _window(self, start: int, room: int) -> tuple[Ids, int]:
        """The ids of the longest window from place `start` that fits, and the place where it ends."""
        tokens = self._places[start] + room
        while True:
            end = self._at_most(tokens)
            if end <= start < len(self._places) - 1:
                raise InvalidInput(
                    "max_seq_length leaves too few tokens for a window of a document - at `$.options.max_seq_length`"
                )
            ids = self._tokenizer.ids(self._frame.part(self._piece(start, end)))
            if len(ids) <= self._frame.room:
                return ids, end
            # in the template the ends of a piece may take other tokens than inside the document
            tokens = self._places[end] - (len(ids) - self._frame.room)

    def _at_most(self, tokens: int) -> int:
        """The last place that has at most so many tokens before it."""
        return bisect_right(self._places, tokens) - 1

    def _piece(self, start: int, end: int) -> str:
        """The text between two places, without spaces where the document was cut."""
        piece = self._text[self._characters[start] : self._characters[end]]
        piece = piece.lstrip() if start else piece
        return piece if self._characters[end] == len(self._text) else piece.rstrip()
