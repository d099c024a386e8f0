"""Prompted rerankers: a causal model reads query and document in a filled template.

If the document ends its part of the template, windows of a long document are slices of the document's own ids.
Otherwise the text after the document is tokenised together with it, and the document has no ids of its own: a window is
then a piece of the document's text, split between two tokens and put into the template like a document.
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import numpy as np

from sie_server.engine.job import Chunk, Chunking, Job, ScoreTexts, build_job
from sie_server.engine.kinds.base import Kind, Parts
from sie_server.engine.kinds.pairs import LogitReader, classifier_reader
from sie_server.engine.storage.weights import CheckpointWeights
from sie_server.engine.text.chunks import Chunks, most_tokens, overlap_of, windows_of, without_spaces
from sie_server.engine.text.forms import Frame
from sie_server.engine.text.prefix import share_prefix
from sie_server.engine.text.prompt_tokenizer import PromptTokenizer
from sie_server.engine.text.reading import Reading
from sie_server.errors import InvalidInput
from sie_server.models.batch import Ids, Tokens
from sie_server.models.building import build_layer_heads, build_token_logits
from sie_server.models.families.decoders.decoder import DecoderSpec
from sie_server.models.spec import CausalSpec, ModelSpec, PromptedClassifierSpec


class PromptInput:
    """Builds jobs of filled templates; the common start of all prompts is computed once."""

    def __init__(self, tokenizer: PromptTokenizer, *, share: bool) -> None:
        self._tokenizer, self._share = tokenizer, share
        self.apart = not share  # a shared prefix is the common start of all prompts

    def score_job(self, texts: ScoreTexts) -> Job:
        """See `TextInput.score_job`."""
        return self._job(
            *self._tokenizer.prompts(texts.query, texts.documents, texts.instruction, texts.limit)
        )

    def chunk_job(self, texts: ScoreTexts, chunking: Chunking) -> Job:
        """See `ChunkInput.chunk_job`."""
        frame = self._tokenizer.frame(texts.query, texts.instruction, texts.limit, split=True)
        split = _split_ids if frame.blank.ends_with("document") else _split_texts
        parts = split(frame, self._tokenizer, texts.documents, chunking)
        job = self._job([frame.whole(part) for part in parts.ids], parts.cut, frame.query_cut)
        job.chunks = parts.chunks
        return job

    def _job(self, sequences: list[Tokens], cut: list[bool], query_cut: bool) -> Job:
        prefix, sequences = share_prefix(sequences) if self._share else (None, sequences)
        job = build_job(("score",), sequences, cut)
        job.prefix, job.query_truncated = prefix, query_cut
        return job


def _split_ids(frame: Frame, tokenizer: PromptTokenizer, documents: list[str], chunking: Chunking) -> Chunks:
    """Return windows of the documents' ids, each after the ids of the text before the document."""
    literal = frame.part("")
    most = frame.around + most_tokens(chunking, frame.room - frame.around)
    result = Chunks([], [], [])
    for number, found in enumerate(tokenizer.read_each(documents, most, literal)):
        # a token that is partly the document's belongs to it, so `before` may leave out the literal's last space
        ids, ours = found.ids, found.spans[:, 1] > len(literal)
        before = int(ours.argmax()) if ours.any() else len(ids)
        own = np.maximum(found.spans[before:] - len(literal), 0)
        room = frame.room - before
        overlap = overlap_of(chunking, room)
        for window, chunk in windows_of(number, documents[number], ids[before:], own, room, overlap):
            result.add(np.concatenate((ids[:before], window)), chunk, found.cut)
    return result


def _split_texts(
    frame: Frame, tokenizer: PromptTokenizer, documents: list[str], chunking: Chunking
) -> Chunks:
    """Return windows of the documents' texts, each put into the template like a document."""
    room = frame.room - frame.around
    overlap = overlap_of(chunking, room)
    result = Chunks([], [], [])
    for number, found in enumerate(tokenizer.read_each(documents, most_tokens(chunking, room))):
        cutter = _TextCutter(frame, tokenizer, documents[number], found)
        windows, left = cutter.windows(room, overlap, chunking.most)
        for index, (ids, start, end) in enumerate(windows):
            span = without_spaces(documents[number], start, end)
            result.add(ids, Chunk(number, index, len(windows), *span), found.cut or left)
    return result


class _TextCutter:
    """Splits the text of a document at places between its tokens."""

    def __init__(self, frame: Frame, tokenizer: PromptTokenizer, text: str, found: Reading) -> None:
        self._frame, self._tokenizer, self._text = frame, tokenizer, text
        spans: list[tuple[int, int]] = found.spans.tolist()
        # a place is a number of tokens; a character of several tokens is not split
        inner = [i for i in range(1, len(spans)) if spans[i][0] >= spans[i - 1][1]]
        self._places = sorted({0, *inner, len(spans)})
        ends = [0] + [spans[place - 1][1] for place in self._places[1:]]
        # spaces that no token covers belong to the token after them; trailing spaces to the last token
        self._characters = ends if found.cut else [*ends[:-1], len(text)]

    def windows(self, room: int, overlap: int, most: int) -> tuple[list[tuple[Ids, int, int]], bool]:
        """Return ids and characters [start, end) of at most `most` windows, and whether text is left over.

        Neighbours share `overlap` tokens, or a few more where the boundary would be inside a character.
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
        """Return the ids of the longest window from place `start` that fits, and the place where it ends."""
        tokens = self._places[start] + room
        while True:
            end = self._at_most(tokens)
            if end <= start < len(self._places) - 1:
                raise InvalidInput(
                    "max_seq_length leaves too few tokens for a window of a document; send a larger one "
                    "- at `$.options.max_seq_length`"
                )
            ids = self._tokenizer.ids(self._frame.part(self._piece(start, end)))
            if len(ids) <= self._frame.room:
                return ids, end
            # the ends of a piece may be tokenised differently in the template than in the document
            tokens = self._places[end] - (len(ids) - self._frame.room)

    def _at_most(self, tokens: int) -> int:
        """Return the index of the last place with at most `tokens` tokens before it."""
        return bisect_right(self._places, tokens) - 1

    def _piece(self, start: int, end: int) -> str:
        """Return the text between two places, without spaces at the ends where the document was split."""
        piece = self._text[self._characters[start] : self._characters[end]]
        piece = piece.lstrip() if start else piece
        return piece if self._characters[end] == len(self._text) else piece.rstrip()


def _tokenizer(directory: Path, spec: ModelSpec) -> PromptTokenizer:
    if not isinstance(spec.head, CausalSpec):
        raise TypeError(f"expected a CausalSpec, got {spec.head!r}")
    padding = spec.head.padding if isinstance(spec.head, PromptedClassifierSpec) else None
    return PromptTokenizer(directory, spec.head.template, padding)


def _input(parts: Parts) -> PromptInput:
    # without causal attention, the states of a shared prefix would depend on the tokens after it
    causal = isinstance(parts.spec.backbone, DecoderSpec) and parts.spec.backbone.causal
    return PromptInput(parts.tokenizer, share=parts.share_prefix and causal)


def _token_reader(parts: Parts, weights: CheckpointWeights) -> LogitReader:
    return LogitReader(build_token_logits(parts.spec, weights, parts.tokenizer.answers))


def _layer_reader(parts: Parts, weights: CheckpointWeights) -> LogitReader:
    return LogitReader(build_layer_heads(parts.spec, weights))


CAUSAL = Kind(input=_input, reader=_token_reader, tokenizer=_tokenizer)
LAYERWISE = Kind(input=_input, reader=_layer_reader, tokenizer=_tokenizer)
PROMPTED_CLASSIFIER = Kind(input=_input, reader=classifier_reader, tokenizer=_tokenizer)
