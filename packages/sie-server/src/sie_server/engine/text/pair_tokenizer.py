"""Query and document in one sequence, `[CLS] query [SEP] document [SEP]`, and how both are cut to fit the limit.

Two libraries cut a pair in two ways (`Truncation`), and a checkpoint's scores are those of the library that its users
run:

- `longest-first`: the longer of the two loses tokens, until both have the same length. This is the default of
  transformers and sentence-transformers: `truncate_encodings` in tokenizers/src/utils/truncation.rs.
- `query-first`: the query is cut to three quarters of the limit, and after that only the document. This is
  FlagEmbedding's rule: `compute_score_single_gpu` in FlagEmbedding/inference/reranker/encoder_only/base.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from sie_server.engine.job import Chunking
from sie_server.engine.text.chunks import Chunks, split
from sie_server.engine.text.reading import ALL
from sie_server.engine.text.slices import count_sequence, most_chars
from sie_server.engine.text.tokenizer import TextTokenizer, not_empty
from sie_server.models.batch import Ids, Tokens
from sie_server.templates.pair_settings import Truncation


class Read(NamedTuple):
    """The tokens of a text, at most as many as fit a pair."""

    ids: Ids
    cut: bool  # the text has more

    def size(self, room: int) -> int:
        """Return the length of the text, `room` + 1 if it has more tokens than `room`."""
        return len(self.ids) + (self.cut and len(self.ids) == room)


class PairTokenizer(TextTokenizer):
    """The tokenizer of a cross-encoder. Thread-safe."""

    def __init__(self, directory: Path, truncation: Truncation, *, token_types: bool) -> None:
        super().__init__(directory, token_types=token_types)
        self._truncation = truncation

    def pairs(self, query: str, documents: list[str], limit: int) -> tuple[list[Tokens], list[bool], bool]:
        """Return pairs of at most `limit` tokens, which documents were truncated, and whether the query was in any."""
        room = self._room(limit)
        query_ids, query_cut = self._query(query, limit)
        spare = room - len(query_ids)
        # a query over half of the room is cut by the length of each document
        by_length = self._truncation == "longest-first" and (query_cut or len(query_ids) > room // 2)
        found, cut = self._encode(documents, room if by_length else spare)
        lengths = [(len(query_ids), len(ids)) for ids in found]
        if by_length:
            lengths = self._shares(
                query, documents, Read(query_ids, query_cut), list(map(Read, found, cut)), room
            )
        pairs = []
        for i, (kept, own) in enumerate(lengths):
            pairs.append(self._pair_of(self._kept(query_ids, kept), self._kept(found[i], own)))
            cut[i] = cut[i] or own < len(found[i])
        return pairs, cut, query_cut or any(kept < len(query_ids) for kept, _ in lengths)

    def windows(
        self, query: str, documents: list[str], limit: int, chunking: Chunking
    ) -> tuple[list[Tokens], Chunks, bool]:
        """Return the pairs of all windows, the windows, and whether the query was truncated in any pair.

        A document that is split counts as longer than any query.

        Raises:
            InvalidInput: the overlap is as large as a window.
        """
        room = self._room(limit)
        query_ids, query_cut = self._query(query, limit)
        longest_first = self._truncation == "longest-first"
        share = min(len(query_ids), room // 2) if longest_first else len(query_ids)
        parts = split(self, documents, room - share, chunking)
        pairs = []
        for ids, chunk in zip(parts.ids, parts.chunks, strict=True):
            kept = min(len(query_ids), room - len(ids)) if chunk.count == 1 else share
            query_cut = query_cut or kept < len(query_ids)
            pairs.append(self._pair_of(self._kept(query_ids, kept), ids))
        return pairs, parts, query_cut

    def _room(self, limit: int) -> int:
        """Return how many tokens query and document may have together."""
        return max(0, limit - self._pair.size)

    def _query(self, query: str, limit: int) -> tuple[Ids, bool]:
        """Return the most tokens of the query that a pair can have, and whether the query has more."""
        room = self._room(limit)
        most = max(1, min(limit * 3 // 4, room - 1)) if self._truncation == "query-first" else room
        [ids], [cut] = self._encode([query], most)
        return ids, cut

    def _shares(
        self, query: str, documents: list[str], query_read: Read, found: list[Read], room: int
    ) -> list[tuple[int, int]]:
        """Return how many tokens of the query and of each document remain.

        Of two texts that are both longer than `room`, the tokens that may be read are counted, one text at a time:
        an odd token is the longer one's.
        """
        shares = [longest_first(query_read.size(room), one.size(room), room) for one in found]
        if query_read.size(room) > room and room % 2:
            total = self._count(query, room, ALL)
            for i, one in enumerate(found):
                if one.size(room) > room and self._count(documents[i], room, total) < total:
                    shares[i] = shares[i][::-1]
        return shares

    def _count(self, text: str, room: int, most: int) -> int:
        """Return how many tokens the part of the text has that is read for `room` tokens; at most `most`."""
        [ids], _ = self._encode([text[: most_chars(room)]], most)
        return len(ids)

    def _pair_of(self, query: Ids, document: Ids) -> Tokens:
        """Return a complete pair; with token types, type 1 starts at the document."""
        template = self._pair
        before = len(template.prefix) + len(query) + len(template.middle)
        count_sequence(before + len(document))
        parts = (template.prefix, query, template.middle, document, template.suffix)
        ids = not_empty(np.concatenate(parts))
        return Tokens(ids, before if template.typed else len(ids))


def longest_first(query: int, document: int, room: int) -> tuple[int, int]:
    """Return how many tokens of both remain in `room`, given their lengths.

    If both are over half of an odd room, the longer one keeps one token more; of two equal ones, the document.
    """
    if query + document <= room:
        return query, document
    shorter = min(query, document, room // 2)
    return (shorter, room - shorter) if query <= document else (room - shorter, shorter)
