"""Counts the text that reaches the tokenizer library."""

from __future__ import annotations

from typing import Any

import pytest

from sie_server.engine.text.tokenizer import TextTokenizer


class CountingTokenizer:
    """A tokenizer of the library that records the characters of every call."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.calls: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def encode_batch(self, texts: list[str], **options: Any) -> Any:
        self.calls.append(sum(map(len, texts)))
        return self._inner.encode_batch(texts, **options)

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.calls.append(sum(map(len, texts)))
        return self._inner.encode_batch_fast(texts, **options)

    def encode(self, *texts: str, **options: Any) -> Any:
        self.calls.append(sum(map(len, texts)))
        return self._inner.encode(*texts, **options)


def counted(tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> CountingTokenizer:
    """Count the calls of a loaded tokenizer from here on, from every part of it."""
    counting = CountingTokenizer(tokenizer._tokenizer)
    monkeypatch.setattr(tokenizer, "_tokenizer", counting)
    monkeypatch.setattr(tokenizer._reader, "_tokenizer", counting)
    return counting
