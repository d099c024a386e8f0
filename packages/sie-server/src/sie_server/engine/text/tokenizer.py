"""Text → token ids exactly as the checkpoint's tokenizer reads it, the query once per request.

Over-long text is cut on the document's side *before* it is tokenised, so that a document of megabytes costs no more
than one that just fits; what was cut is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer
from tokenizers.normalizers import Lowercase, Sequence

from sie_server.errors import InvalidInput
from sie_server.models.batch import Ids, Tokens
from sie_server.models.spec import UnsupportedCheckpoint, read_json

# A window of this many characters per wanted token is tokenised first; English has about 5, and a window that turns
# out too short is doubled.
CHARS_PER_TOKEN = 16
# Tokens at the end of a window cut inside a word may differ from those of the whole text; this many are not trusted.
EDGE_TOKENS = 64


@dataclass(frozen=True)
class Template:
    """Special tokens around and between texts, as the tokenizer's own post-processor puts them."""

    prefix: Ids
    middle: Ids
    suffix: Ids
    typed: bool  # the second text (and what follows it) has token type 1

    @property
    def size(self) -> int:
        return len(self.prefix) + len(self.middle) + len(self.suffix)


class TextTokenizer:
    """One checkpoint's tokenizer. Safe to call from several threads."""

    def __init__(self, directory: Path, *, token_types: bool, lower_case: bool = False) -> None:
        """`lower_case`: texts are lower-cased before anything the file itself says."""
        path = directory / "tokenizer.json"
        if not path.exists():
            raise UnsupportedCheckpoint(f"tokenizer.json is missing in {directory}")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises a bare Exception
            raise UnsupportedCheckpoint(f"{path} is not a tokenizer: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if lower_case:
            own = self._tokenizer.normalizer
            self._tokenizer.normalizer = Sequence([Lowercase(), own] if own else [Lowercase()])
        self._pair = _probe(self._tokenizer, pair=True, typed=token_types)
        self._single = _probe(self._tokenizer, pair=False, typed=token_types)

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def check_end(self, directory: Path) -> None:
        """For models whose last token is read out: what their settings append must be in `tokenizer.json`.

        Raises:
            UnsupportedCheckpoint: `add_eos_token` is set, and the post-processor appends nothing.
        """
        path = directory / "tokenizer_config.json"
        if path.exists() and read_json(path).get("add_eos_token") and not len(self._single.suffix):
            raise UnsupportedCheckpoint(
                "tokenizer_config.json sets add_eos_token, but the post-processor in tokenizer.json appends no token; "
                "the vector would be another one. Load and save the tokenizer with transformers to write it down"
            )

    def token_id(self, token: str) -> int | None:
        """The id of exactly this token, None when the vocabulary has no such token."""
        number: int | None = self._tokenizer.token_to_id(token)
        return number

    def ids_of(self, tokens: tuple[str, ...]) -> frozenset[int]:
        """Ids of tokens by their text.

        Raises:
            UnsupportedCheckpoint: the vocabulary has no such token.
        """
        ids = [self._tokenizer.token_to_id(token) for token in tokens]
        if None in ids:
            raise UnsupportedCheckpoint(f"tokenizer.json has no token {tokens[ids.index(None)]!r}")
        return frozenset(i for i in ids if i is not None)

    def pairs(self, query: str, documents: list[str], limit: int) -> tuple[list[Tokens], list[bool], bool]:
        """Cross-encoder input `[CLS] query [SEP] document [SEP]`, at most `limit` tokens each.

        Only the document is cut, to what the query leaves. A query that takes more than three quarters of the limit
        is cut to that (the cap of FlagEmbedding's rerankers), so that documents always keep a share.
        Returns the sequences, which documents were cut, and whether the query was.
        """
        head, room, query_cut = self.pair_head(query, limit)
        documents_ids, cut = self._encode(documents, room)
        return [self.pair(head, document) for document in documents_ids], cut, query_cut

    def decode(self, ids: list[int]) -> str:
        """Text, special tokens included."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def tokens(self, ids: list[int]) -> list[str]:
        """Tokens by name; an id beyond the vocabulary has none."""
        return [self._tokenizer.id_to_token(i) or f"<{i}>" for i in ids]

    def read_to(self, text: str, ids: list[int]) -> int | None:
        """After which character of `text` its tokens end in `ids`: the longest run of its first tokens counts."""
        [(whole, spans)], _ = self.encode_with_spans([text], len(ids))
        own, best = whole.tolist(), 0
        for start in range(len(ids)):
            same = 0
            while start + same < len(ids) and same < len(own) and ids[start + same] == own[same]:
                same += 1
            best = max(best, same)
        return spans[best - 1][1] if best else None

    def pair_head(self, query: str, limit: int) -> tuple[Ids, int, bool]:
        """What stands before every document, the tokens that are left for one, and whether the query was cut."""
        template = self._pair
        [query_ids], [query_cut] = self._encode(
            [query], max(1, min(limit * 3 // 4, limit - template.size - 1))
        )
        head = np.concatenate((template.prefix, query_ids, template.middle))
        return head, max(0, limit - template.size - len(query_ids)), query_cut

    def pair(self, head: Ids, document: Ids) -> Tokens:
        """A whole pair; with token types, type 1 starts at the document."""
        ids = _not_empty(np.concatenate((head, document, self._pair.suffix)))
        return Tokens(ids, len(head) if self._pair.typed else len(ids))

    def singles(
        self, texts: list[str], limit: int, marker: int | None = None
    ) -> tuple[list[Tokens], list[bool]]:
        """Encoder input `[CLS] text [SEP]`, at most `limit` tokens each, and which texts were cut.

        A `marker` goes after the first token, and counts in the limit.
        """
        room = max(0, self.single_room(limit) - (marker is not None))
        texts_ids, cut = self._encode(texts, room)
        return [self.single(text, marker) for text in texts_ids], cut

    def single_room(self, limit: int) -> int:
        """Tokens that are left for a text alone."""
        return max(0, limit - self._single.size)

    def single(self, text: Ids, marker: int | None = None) -> Tokens:
        """A text between its special tokens."""
        prefix, suffix = self._single.prefix, self._single.suffix
        if marker is not None:
            prefix = np.concatenate((prefix[:1], _ids([marker]), prefix[1:]))
        ids = _not_empty(np.concatenate((prefix, text, suffix)))
        return Tokens(ids, len(ids))

    def encode_with_spans(
        self, texts: list[str], limit: int
    ) -> tuple[list[tuple[Ids, list[tuple[int, int]]]], list[bool]]:
        """As `_encode`, each with the characters [start, end) of the text that its tokens come from."""
        encodings, cut = self._encodings(texts, limit, self._tokenizer.encode_batch)
        return [(_ids(e.ids[:limit]), e.offsets[:limit]) for e in encodings], cut

    def _encode(self, texts: list[str], limit: int) -> tuple[list[Ids], list[bool]]:
        """Ids without special tokens, at most `limit` each, and which texts have more."""
        encodings, cut = self._encodings(texts, limit, self._tokenizer.encode_batch_fast)
        return [_ids(e.ids[:limit]) for e in encodings], cut

    def _encodings(
        self, texts: list[str], limit: int, encode: Callable[..., list[Encoding]]
    ) -> tuple[list[Encoding], list[bool]]:
        """The first `limit` tokens and maybe more of each text, and which texts have more than `limit`."""
        done: dict[int, Encoding] = {}
        cut = [False] * len(texts)
        todo, width = list(range(len(texts))), max(256, limit * CHARS_PER_TOKEN)
        while todo:
            windows = [_window(texts[i], width) for i in todo]
            encodings = encode([w.text for w in windows], add_special_tokens=False)
            again = []
            for i, window, encoding in zip(todo, windows, encodings, strict=True):
                if not window.whole and len(encoding) <= limit + window.edge:
                    again.append(i)
                    continue
                cut[i] = not window.whole or len(encoding) > limit
                done[i] = encoding
            todo, width = again, width * 4
        return [done[i] for i in range(len(texts))], cut


@dataclass(frozen=True)
class _Window:
    text: str
    whole: bool
    edge: int  # tokens at the end that may differ from those of the whole text


def _window(text: str, width: int) -> _Window:
    """The first `width` characters, ending between two words where there is such a place."""
    if len(text) <= width:
        return _Window(text, True, 0)
    end = max(text.rfind(" ", width // 2, width), text.rfind("\n", width // 2, width))
    return _Window(text[:end], False, 0) if end > 0 else _Window(text[:width], False, EDGE_TOKENS)


def _probe(tokenizer: Tokenizer, *, pair: bool, typed: bool) -> Template:
    """Find out what the post-processor adds, by letting it work on two words it cannot confuse."""
    first, second = "a", "b"
    words = [
        tokenizer.encode(w, add_special_tokens=False).ids for w in ((first, second) if pair else (first,))
    ]
    done: Encoding = tokenizer.encode(first, second) if pair else tokenizer.encode(first)
    start = _find(done.ids, words[0], 0)
    after = start + len(words[0])
    if not pair:
        return Template(_ids(done.ids[:start]), _ids([]), _ids(done.ids[after:]), False)
    second_start = _find(done.ids, words[1], after)
    second_end = second_start + len(words[1])
    typed = typed and done.type_ids[second_start] == 1
    return Template(
        _ids(done.ids[:start]), _ids(done.ids[after:second_start]), _ids(done.ids[second_end:]), typed
    )


def _find(ids: list[int], word: list[int], start: int) -> int:
    for at in range(start, len(ids) - len(word) + 1):
        if word and ids[at : at + len(word)] == word:
            return at
    raise UnsupportedCheckpoint("tokenizer.json's post-processor does not keep the texts in order")


def _not_empty(ids: Ids) -> Ids:
    if not len(ids):
        raise InvalidInput(
            "a text is empty, and this model's tokenizer adds no tokens of its own, so there is nothing to read; "
            "send at least one word"
        )
    return ids


def _ids(values: list[int]) -> Ids:
    return np.array(values, dtype=np.int32)
