"""Text → token ids, exactly as the checkpoint's tokenizer produces them. A request's query is tokenised once.

A long document is truncated *before* it is tokenised, so that a document of megabytes costs no more than one that just
fits (`engine.text.reading`). Truncated texts are reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer, normalizers

from sie_server.engine.text.expressions import is_brisk
from sie_server.engine.text.loading.classes import steps_of
from sie_server.engine.text.loading.files import TokenizerFiles
from sie_server.engine.text.loading.load import load_tokenizer
from sie_server.engine.text.loading.names import has_token_types
from sie_server.engine.text.reading import Reading, TextReader
from sie_server.engine.text.slices import BYTES_PER_CHAR, count_sequence
from sie_server.errors import InvalidInput, shown
from sie_server.models.batch import Ids, Tokens
from sie_server.models.settings.sentence import sentence_settings
from sie_server.models.spec import UnsupportedCheckpoint, read_json
from sie_server.room import check_room


@dataclass(frozen=True)
class Template:
    """The special tokens that the tokenizer's post-processor adds around and between texts."""

    prefix: Ids
    middle: Ids
    suffix: Ids
    typed: bool  # the second text and the suffix have token type 1

    @property
    def size(self) -> int:
        """Number of special tokens."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)


@dataclass(frozen=True)
class Place:
    """A token of a text: its id and name, and the characters `text[start:stop]` that it stands for."""

    id: int
    name: str
    special: bool  # added by the tokenizer, so it stands for no characters
    start: int
    stop: int


class TextTokenizer:
    """The tokenizer of a checkpoint. Thread-safe. All its ids are below `vocab_size`."""

    def __init__(self, directory: Path, *, token_types: bool) -> None:
        """Load the tokenizer's files; `token_types`: the second text of a pair may have type 1.

        Raises:
            UnsupportedCheckpoint: a file is missing or invalid.
        """
        files = TokenizerFiles(directory)
        self._tokenizer, side = load_tokenizer(files)
        token_types = token_types and has_token_types(files)
        self._reader = TextReader(self._tokenizer)
        self.truncation_side = _truncation_side(files, side)
        if sentence_settings(directory).get("do_lower_case"):
            _lower(self._tokenizer)
        self._pair = _probe(self._tokenizer, pair=True, typed=token_types)
        self._single = _probe(self._tokenizer, pair=False, typed=token_types)
        own = [part for t in (self._pair, self._single) for part in (t.prefix, t.middle, t.suffix)]
        known = self._tokenizer.get_vocab(with_added_tokens=True).values()
        # a file may leave ids out, and its post-processor may name ids beyond its vocabulary
        self.brisk = is_brisk(self._tokenizer)
        self.vocab_size = 1 + max([-1, *known, *(int(i) for part in own for i in part)])

    def check_side(self, kind: str) -> None:
        """Check that texts lose tokens at their end, for models of a kind that is not cut at the start.

        Raises:
            UnsupportedCheckpoint: they lose tokens at their start.
        """
        if self.truncation_side == "left":
            raise UnsupportedCheckpoint(
                f"tokenizer_config.json has truncation_side 'left', which is not supported for {kind}; if the model "
                "was trained with texts that are cut at the end, remove the setting"
            )

    def check_end(self, directory: Path) -> None:
        """Check that the post-processor appends the token that the settings announce; for models that read it out.

        Raises:
            UnsupportedCheckpoint: `add_eos_token` is set, and the post-processor appends no token.
        """
        path = directory / "tokenizer_config.json"
        if path.exists() and read_json(path).get("add_eos_token") and not len(self._single.suffix):
            raise UnsupportedCheckpoint(
                "tokenizer_config.json sets add_eos_token, but the post-processor in tokenizer.json appends no token, "
                "so the vector would differ. Load the tokenizer with transformers and save it to update the file"
            )

    def token_id(self, token: str) -> int | None:
        """Return the id of exactly this token, None if the vocabulary lacks it."""
        number: int | None = self._tokenizer.token_to_id(token)
        return number

    def ids_of(self, tokens: tuple[str, ...]) -> frozenset[int]:
        """Return the ids of tokens by their text.

        Raises:
            UnsupportedCheckpoint: the vocabulary lacks one of them.
        """
        ids = [self._tokenizer.token_to_id(token) for token in tokens]
        if None in ids:
            raise UnsupportedCheckpoint(f"tokenizer.json has no token {tokens[ids.index(None)]!r}")
        return frozenset(i for i in ids if i is not None)

    def decode(self, ids: list[int]) -> str:
        """Return the text of the tokens, special tokens included."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def written(self, ids: list[int]) -> str:
        """Return the text of the tokens without special tokens."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def places(self, text: str, *, special: bool) -> list[Place]:
        """Return the tokens of a whole text and their characters, with special tokens on request."""
        check_room(len(text) * BYTES_PER_CHAR)
        found = self._tokenizer.encode(text, add_special_tokens=special)
        fields = (found.ids, found.tokens, found.special_tokens_mask, found.offsets)
        return [Place(i, name, bool(mask), *span) for i, name, mask, span in zip(*fields, strict=True)]

    def tokens(self, ids: list[int]) -> list[str]:
        """Return the names of the tokens; an id beyond the vocabulary becomes `<id>`."""
        return [self._tokenizer.id_to_token(i) or f"<{i}>" for i in ids]

    def read_to(self, text: str, ids: list[int]) -> int | None:
        """Return how many characters of `text` are in `ids`: the longest run of its first tokens counts.

        None: not one, or the tokenizer truncates texts at the start.
        """
        if self.truncation_side == "left":
            return None
        [read] = self.read([text], len(ids))
        best = _longest_start(read.ids.tolist(), ids)
        return int(read.spans[best - 1][1]) if best else None

    def singles(
        self, texts: list[str], limit: int, marker: int | None = None, prefix: str = ""
    ) -> tuple[list[Tokens], list[bool]]:
        """Tokenise encoder input `[CLS] text [SEP]`, at most `limit` tokens each; return which were truncated.

        A `marker` follows the first token and counts towards the limit. `prefix` is put before every text.
        """
        room = max(0, self.single_room(limit) - (0 if marker is None else 1))
        texts_ids, cut = self._encode(texts, room, prefix)
        return [self.single(text, marker) for text in texts_ids], cut

    def single_room(self, limit: int) -> int:
        """Return how many tokens of a text fit between its special tokens."""
        return max(0, limit - self._single.size)

    def single(self, text: Ids, marker: int | None = None) -> Tokens:
        """Return a text between its special tokens."""
        prefix, suffix = self._single.prefix, self._single.suffix
        if marker is not None:
            prefix = np.concatenate((prefix[:1], id_array([marker]), prefix[1:]))
        count_sequence(len(text))
        ids = not_empty(np.concatenate((prefix, text, suffix)))
        return Tokens(ids, len(ids))

    def read(self, texts: Sequence[str], limit: int, prefix: str = "") -> list[Reading]:
        """Return the first `limit` tokens of each `prefix + text` and their characters, without special tokens."""
        return self._reader.read(texts, limit, prefix=prefix, spans=True)

    def read_each(self, texts: Sequence[str], limit: int, prefix: str = "") -> Iterator[Reading]:
        """As `read`, one text at a time; for limits of many tokens."""
        return self._reader.read_each(texts, limit, prefix=prefix)

    def _encode(self, texts: Sequence[str], limit: int, prefix: str = "") -> tuple[list[Ids], list[bool]]:
        """Return the `limit` ids of each text that remain when it is truncated, and which texts have more."""
        read = self._reader.read_last if self.truncation_side == "left" else self._reader.read
        found = read(texts, limit, prefix=prefix)
        return [reading.ids for reading in found], [reading.cut for reading in found]

    def _kept(self, ids: Ids, count: int) -> Ids:
        """Return the `count` ids that remain when a text is truncated."""
        return ids[len(ids) - count :] if self.truncation_side == "left" else ids[:count]


def _truncation_side(files: TokenizerFiles, default: str) -> str:
    """Return the side on which texts lose tokens: `left` or `right`, by tokenizer_config.json, else tokenizer.json."""
    side = files.own.get("truncation_side", default)
    if side not in ("left", "right"):
        raise UnsupportedCheckpoint(
            f"tokenizer_config.json: truncation_side is {shown(side)}; expected 'left' or 'right'"
        )
    return str(side)


def _lower(tokenizer: Tokenizer) -> None:
    """Lower-case texts first, unless a step of the normalizer does, as sentence-transformers' module Transformer."""
    steps = steps_of(tokenizer.normalizer)
    if not any(isinstance(step, normalizers.Lowercase) for step in steps):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])


def _longest_start(start: list[int], ids: list[int]) -> int:
    """Return the length of the longest start of `start` that is anywhere in `ids`.

    The algorithm of Knuth, Morris and Pratt takes linear time, also for a token that is repeated.
    """
    fallback, best, length = [0], 0, 0
    for token in start[1:]:
        length = _extended(start, fallback, length, token)
        fallback.append(length)
    length = 0
    for token in ids:
        if length == len(start):
            return length
        length = _extended(start, fallback, length, token)
        best = max(best, length)
    return best


def _extended(start: list[int], fallback: list[int], length: int, token: int) -> int:
    """Return the length of the longest start that ends with `token`, after a match of `length` tokens."""
    while length and start[length] != token:
        length = fallback[length - 1]
    return length + 1 if start and start[length] == token else 0


def _probe(tokenizer: Tokenizer, *, pair: bool, typed: bool) -> Template:
    """Find the special tokens of the post-processor by applying it to two different words."""
    first, second = "a", "b"
    words = [
        tokenizer.encode(w, add_special_tokens=False).ids for w in ((first, second) if pair else (first,))
    ]
    done: Encoding = tokenizer.encode(first, second) if pair else tokenizer.encode(first)
    start = _find(done.ids, words[0], 0)
    after = start + len(words[0])
    if not pair:
        return Template(id_array(done.ids[:start]), id_array([]), id_array(done.ids[after:]), False)
    second_start = _find(done.ids, words[1], after)
    second_end = second_start + len(words[1])
    typed = typed and done.type_ids[second_start] == 1
    return Template(
        id_array(done.ids[:start]),
        id_array(done.ids[after:second_start]),
        id_array(done.ids[second_end:]),
        typed,
    )


def _find(ids: list[int], word: list[int], start: int) -> int:
    for at in range(start, len(ids) - len(word) + 1):
        if word and ids[at : at + len(word)] == word:
            return at
    raise UnsupportedCheckpoint("tokenizer.json's post-processor does not keep the texts in order")


def not_empty(ids: Ids) -> Ids:
    """Return the ids of a sequence.

    Raises:
        InvalidInput: there are none.
    """
    if not len(ids):
        raise InvalidInput(
            "a text is empty, and this model's tokenizer adds no special tokens, so the sequence would be empty; "
            "send at least one word"
        )
    return ids


def id_array(values: list[int]) -> Ids:
    """Return token ids as an array."""
    return np.array(values, dtype=np.int32)
