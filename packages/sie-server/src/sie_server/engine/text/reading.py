"""Texts → their first tokens. Reads only as much of a text as the tokens need, in slices of bounded work.

A window at the start of the text is tokenised, and a larger one if it yields too few tokens. A text that needs more
than one slice is tokenised piece by piece: pieces overlap, and are joined where both have the same tokens. Ids are
those of the whole text, except at the bounds that docs/scores.md describes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from sie_server.engine.text.slices import SLICE_CHARS, SLICE_TEXTS, before_slice, encode_spread, most_chars
from sie_server.models.batch import Ids

Spans = npt.NDArray[np.int32]  # [tokens, 2]: the characters [start, end) of each token

# Characters per wanted token in the first window. English has about 5 per token. Growing is rare.
CHARS_PER_TOKEN, GROWTH = 16, 8
# If a window ends inside a word or a run of blanks, this many tokens at its end may differ from the whole text's.
EDGE_TOKENS = 64
OVERLAP_TOKENS = EDGE_TOKENS + 64  # that two pieces of a text have in common
SEAM_TOKENS = 16  # that must be equal in both
ALL = 2**31  # as a limit: every token


@dataclass(frozen=True)
class Reading:
    """The first tokens of a text."""

    ids: Ids
    spans: Spans  # empty unless requested
    cut: bool  # the text has more

    def start_of(self, text: str, tokens: int | None = None) -> str:
        """Return the characters of `text` that are in its first `tokens` tokens, or in all that were read.

        A text that has no more tokens is returned whole.
        """
        most = len(self.ids) if tokens is None else min(tokens, len(self.ids))
        if not self.cut and most == len(self.ids):
            return text
        return text[: int(self.spans[most - 1, 1])] if most else ""


@dataclass(frozen=True)
class TextWindow:
    """The start of a text that is tokenised in its place."""

    text: str
    whole: bool
    edge: int  # tokens at the end that may differ from those of the whole text


class TextReader:
    """Reads texts with one tokenizer. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def read(
        self, texts: Sequence[str], limit: int, *, prefix: str = "", spans: bool = False
    ) -> list[Reading]:
        """Return the first `limit` tokens of each `prefix + text`, without special tokens."""
        found: dict[int, Reading] = {}
        most = len(prefix) + most_chars(limit)
        wanted = len(prefix) + max(256, limit * CHARS_PER_TOKEN)
        lengths = [len(prefix) + len(text) for text in texts]
        long = {i for i, length in enumerate(lengths) if length > SLICE_CHARS and wanted > SLICE_CHARS}
        todo, width = [i for i in range(len(texts)) if i not in long], min(wanted, SLICE_CHARS)
        while todo:
            again: list[int] = []
            for part in _slices(todo, [min(lengths[i], width) for i in todo]):
                windows = [text_window(_part(prefix, texts[i], 0, width + 1), width) for i in part]
                encodings = self._slice([window.text for window in windows], spans)
                for i, window, encoding in zip(part, windows, encodings, strict=True):
                    if window.whole or len(encoding) > limit + window.edge or width >= most:
                        found[i] = _reading(encoding, limit, spans, cut=not window.whole)
                    elif width < SLICE_CHARS:
                        again.append(i)
            todo, width = again, _wider(width, min(most, SLICE_CHARS))
        return [found[i] if i in found else self._long(prefix, text, limit) for i, text in enumerate(texts)]

    def read_last(self, texts: Sequence[str], limit: int, *, prefix: str = "") -> list[Reading]:
        """Return the last `limit` tokens of each `prefix + text`, without special tokens and spans.

        At most `most_chars(limit)` characters at the end are read, one text at a time: many tokens take memory.
        """
        most, found = most_chars(limit), []
        for text in texts:
            end = _part(prefix, text, max(0, len(prefix) + len(text) - most), len(prefix) + len(text))
            [reading] = self.read([end], ALL)
            more = len(reading.ids) - limit
            found.append(
                Reading(
                    reading.ids[max(0, more) :].copy(),
                    reading.spans,
                    more > 0 or len(end) < len(prefix) + len(text),
                )
            )
        return found

    def read_each(self, texts: Sequence[str], limit: int, *, prefix: str = "") -> Iterator[Reading]:
        """Yield the first `limit` tokens of each text with spans, one text at a time: many tokens take memory."""
        for text in texts:
            yield from self.read([text], limit, prefix=prefix, spans=True)

    def _slice(self, texts: list[str], spans: bool) -> list[Encoding]:
        before_slice(sum(map(len, texts)))
        encode = self._tokenizer.encode_batch if spans else self._tokenizer.encode_batch_fast
        return encode_spread(partial(encode, add_special_tokens=False), texts)

    def _long(self, prefix: str, text: str, limit: int) -> Reading:
        """Read a text piece by piece."""
        length = len(prefix) + len(text)
        most = min(length, len(prefix) + most_chars(limit))
        ids, spans = np.empty(0, np.int32), np.empty((0, 2), np.int32)
        start, edge = 0, 0
        while True:
            window = text_window(_part(prefix, text, start, min(most, start + SLICE_CHARS + 1)), SLICE_CHARS)
            end = start + len(window.text)
            [encoding] = self._slice([window.text], spans=True)
            ids, spans = _joined(ids, spans, edge, _ids(encoding), _spans(encoding) + start)
            edge = window.edge
            if window.whole or len(ids) > limit + edge:
                return Reading(ids[:limit], spans[:limit], len(ids) > limit or end < length)
            start = _restart(spans, start, end)


def _wider(width: int, most: int) -> int:
    """Return the width of the next window; the last one is not preceded by one of nearly its size."""
    return most if width * GROWTH * 2 > most else width * GROWTH


def text_window(text: str, width: int) -> TextWindow:
    """Return the first `width` characters, ending between two words if possible."""
    if len(text) <= width:
        return TextWindow(text, True, 0)
    end = max(text.rfind(" ", width // 2, width), text.rfind("\n", width // 2, width))
    if end <= 0:
        return TextWindow(text[:width], False, EDGE_TOKENS)
    return TextWindow(text[:end], False, EDGE_TOKENS if text[end - 1].isspace() else 0)


def _part(prefix: str, text: str, start: int, end: int) -> str:
    """Return the characters [start, end) of `prefix + text`."""
    own = len(prefix)
    return prefix[start:end] + text[max(0, start - own) : max(0, end - own)]


def _slices(places: list[int], sizes: list[int]) -> Iterator[list[int]]:
    """Yield the places in order, in parts of bounded size; a single one may be larger."""
    start, total = 0, 0
    for end, size in enumerate(sizes):
        if end > start and (total + size > SLICE_CHARS or end - start >= SLICE_TEXTS):
            yield places[start:end]
            start, total = end, 0
        total += size
    yield places[start:]


def _restart(spans: Spans, start: int, end: int) -> int:
    """Return where the piece after [start, end) begins.

    Normally that is `OVERLAP_TOKENS` before its end. A word or a run of blanks over half the piece has no overlap.
    """
    middle = (start + end) // 2
    starts = spans[-OVERLAP_TOKENS:, 0]
    later = starts[starts >= middle]
    return int(later[0]) if middle > start and len(later) else end


def _joined(ids: Ids, spans: Spans, edge: int, new_ids: Ids, new_spans: Spans) -> tuple[Ids, Spans]:
    """Join two pieces where both have the same tokens; without such a place, where the first piece ends."""
    if not len(ids) or not len(new_ids):
        return np.concatenate((ids, new_ids)), np.concatenate((spans, new_spans))
    old, new = _seam(ids, spans, edge, new_ids, new_spans)
    return np.concatenate((ids[:old], new_ids[new:])), np.concatenate((spans[:old], new_spans[new:]))


def _seam(ids: Ids, spans: Spans, edge: int, new_ids: Ids, new_spans: Spans) -> tuple[int, int]:
    """Return how many tokens of the first piece remain, and how many of the second are left out."""
    last = len(ids) - edge
    first = max(0, len(ids) - OVERLAP_TOKENS)
    run = min(SEAM_TOKENS, last - first)
    for old in range(first, last - run + 1 if run > 0 else first):
        new = int(np.searchsorted(new_spans[:, 0], spans[old, 0]))
        if old and spans[old, 0] == spans[old - 1, 0]:
            continue  # inside a character of several tokens
        same = slice(old, old + run), slice(new, new + run)
        if np.array_equal(ids[same[0]], new_ids[same[1]]) and np.array_equal(
            spans[same[0]], new_spans[same[1]]
        ):
            return old, new
    return len(ids), int(np.searchsorted(new_spans[:, 0], spans[:, 1].max()))


def _reading(encoding: Encoding, limit: int, spans: bool, *, cut: bool) -> Reading:
    found = _spans(encoding)[:limit] if spans else np.empty((0, 2), np.int32)
    return Reading(_ids(encoding)[:limit].copy(), found, cut or len(encoding) > limit)


def _ids(encoding: Encoding) -> Ids:
    return np.array(encoding.ids, dtype=np.int32)


def _spans(encoding: Encoding) -> Spans:
    return np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
