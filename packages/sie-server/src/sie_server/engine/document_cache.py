"""Token vectors of documents, kept so that ranking the same documents for another query costs one matrix product.

What is kept is what the scorer used, fp32 on the model's device, so a score does not depend on where the vectors
came from. Entries are found by the content of the document, and belong to one load of one model: vectors of other
weights are never served.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b

from sie_server.models.batch import Ids
from sie_server.models.heads.late_interaction import DocumentVectors

ENTRY_BYTES = 512  # of the entry itself, beside its vectors
_loads = itertools.count()


@dataclass(frozen=True)
class CachedDocument:
    """A document as it was scored, whether its text had been cut, and the tokens it took to read it."""

    vectors: DocumentVectors
    truncated: bool
    tokens: int

    @property
    def nbytes(self) -> int:
        return self.vectors.nbytes + ENTRY_BYTES


class DocumentCache:
    """All models' documents under one budget, the least recently used go first. Safe to use from several threads."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._entries: OrderedDict[bytes, CachedDocument] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = self.hits = self.misses = self.evictions = 0

    def get(self, key: bytes) -> CachedDocument | None:
        """The document, which becomes the most recently used."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return entry

    def put(self, key: bytes, entry: CachedDocument) -> None:
        """Keep a document, unless it alone is larger than the budget."""
        with self._lock:
            self._remove(key)
            if entry.nbytes > self._budget:
                return
            self._entries[key] = entry
            self.nbytes += entry.nbytes
            while self.nbytes > self._budget:
                self._remove(next(iter(self._entries)))
                self.evictions += 1

    def _remove(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.nbytes -= entry.nbytes

    def forget(self, scope: bytes) -> None:
        """Drop everything of one load of a model (see `ModelDocuments.scope`)."""
        with self._lock:
            for key in [key for key in self._entries if key.startswith(scope)]:
                self._remove(key)


class ModelDocuments:
    """One load of one model's share of the cache, or one adapter's."""

    def __init__(self, cache: DocumentCache, model: str, revision: str | None) -> None:
        name = f"{model}\n{revision}\n{next(_loads)}"
        self.scope = blake2b(name.encode(), digest_size=8).digest()
        self._cache = cache

    def under_adapter(self) -> ModelDocuments:
        """The share of one adapter of the model, whose vectors are others; forgotten with the model's own."""
        part = object.__new__(ModelDocuments)
        part._cache, part.scope = self._cache, self.scope + next(_loads).to_bytes(8, "big")
        return part

    def key(self, text: str, limit: int) -> bytes:
        """What identifies a document cut to `limit` tokens."""
        return self._key(text.encode("utf-8", "surrogatepass"), limit)

    def window_key(self, ids: Ids) -> bytes:
        """What identifies a window of a longer document: its tokens. No text has the limit 0."""
        return self._key(ids.tobytes(), 0)

    def _key(self, content: bytes, limit: int) -> bytes:
        return self.scope + limit.to_bytes(4, "big") + blake2b(content, digest_size=24).digest()

    def get(self, key: bytes) -> CachedDocument | None:
        return self._cache.get(key)

    def put(self, key: bytes, document: CachedDocument) -> None:
        self._cache.put(key, document)

    def forget(self) -> None:
        """Give the memory back when the model is unloaded."""
        self._cache.forget(self.scope)
