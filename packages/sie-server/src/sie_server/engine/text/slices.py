"""Bounds of tokenising: how much of a text is read, in which steps, and how many tokens a request may have.

Every call of the tokenizer library goes through `engine.text.reading`, which announces it here. Serving sets a
function that may wait, so that requests share the processor, or raise, so that a cancelled request ends, and another
one that lets idle threads help (`serving.tokenizing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from tokenizers import Encoding

from sie_server.errors import InvalidInput
from sie_server.room import check_room

# Characters in one call of the tokenizer library: 5 to 100 ms; 0.6 s for characters that NFKC expands eighteenfold.
SLICE_CHARS = 65_536
SLICE_TEXTS = 1024  # texts in one call
# Memory of the tokenizer library for a character, at most: 400 bytes where each is a token, 135 in English.
BYTES_PER_CHAR = 400
# Characters that are read of a text for each token wanted, but at least a slice. English has about 5 per token.
# WordPiece makes one token of a word over 100 characters, so a text in a script without spaces and outside the
# vocabulary has up to about 100.
MOST_CHARS_PER_TOKEN = 128

# Tokens in all sequences of a request. A long query is repeated for every document, and windows overlap, so a small
# body could cause many more.
MOST_TOKENS = 2**24
LEAST_TOKENS = 64  # that a sequence counts as; a shorter one costs as much memory

Pace = Callable[[int], None]
Encode = Callable[[list[str]], list[Encoding]]  # a call of the tokenizer library
Spread = Callable[[Encode, list[str]], list[Encoding]]  # returns what the call returns, in the texts' order
_pace: ContextVar[Pace | None] = ContextVar("pace", default=None)
_spread: ContextVar[Spread | None] = ContextVar("spread", default=None)
_left: ContextVar[Allowance | None] = ContextVar("left", default=None)


@contextmanager
def paced(pace: Pace) -> Iterator[None]:
    """Call `pace` on this thread before every slice, with the slice's characters."""
    token = _pace.set(pace)
    try:
        with at_most(MOST_TOKENS):
            yield
    finally:
        _pace.reset(token)


@contextmanager
def at_most(tokens: int) -> Iterator[None]:
    """Limit the tokens of all sequences that are built on this thread."""
    with counted(Allowance(tokens)):
        yield


class Allowance:
    """The tokens that the sequences of a request may have."""

    def __init__(self, tokens: int = MOST_TOKENS) -> None:
        self.most = self.left = tokens


@contextmanager
def counted(allowance: Allowance) -> Iterator[None]:
    """Take the tokens of the sequences that are built on this thread from `allowance`. If the block fails, none are."""
    token, before = _left.set(allowance), allowance.left
    try:
        yield
    except BaseException:
        allowance.left = before
        raise
    finally:
        _left.reset(token)


@contextmanager
def spread_by(spread: Spread) -> Iterator[None]:
    """Let `spread` make the calls of the tokenizer library of this thread."""
    token = _spread.set(spread)
    try:
        yield
    finally:
        _spread.reset(token)


def encode_spread(encode: Encode, texts: list[str]) -> list[Encoding]:
    """Return `encode(texts)`, a slice; serving may compute it on several threads."""
    spread = _spread.get()
    return encode(texts) if spread is None else spread(encode, texts)


def count_sequence(tokens: int) -> None:
    """Count a sequence of the request before it is built.

    Raises:
        InvalidInput: the request has too many tokens.
    """
    left = _left.get()
    if left is None:
        return
    left.left -= max(tokens, LEAST_TOKENS)
    if left.left < 0:
        raise InvalidInput(
            f"the sequences of this request have more than {left.most:,} tokens in all, with the query in each of them "
            "and overlapping windows; send fewer or shorter documents, or a shorter query - at `$.items`"
        )


def before_slice(characters: int) -> None:
    """Announce a slice. Waits or raises if serving says so.

    Raises:
        MemoryError: the tokenizer library would lack memory.
    """
    pace = _pace.get()
    if pace is not None:
        pace(characters)
    check_room(characters * BYTES_PER_CHAR)


def most_chars(tokens: int) -> int:
    """Return how many characters of a text are read at most to find its first `tokens` tokens."""
    return max(SLICE_CHARS, MOST_CHARS_PER_TOKEN * tokens)


def clip(texts: Sequence[str], tokens: int) -> tuple[list[str], list[bool]]:
    """Cut texts to one character more than is read for `tokens` tokens, and return which texts have more.

    The additional character keeps a clipped text recognisable as one that is not read to its end.
    """
    most = most_chars(tokens)
    return [text[: most + 1] for text in texts], [len(text) > most for text in texts]


def either(first: Sequence[bool], second: Sequence[bool]) -> list[bool]:
    """Return which places are true in one of two lists."""
    return [a or b for a, b in zip(first, second, strict=True)]
