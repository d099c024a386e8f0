"""The document cache: token vectors of documents, so that scoring them for another query costs one matrix product.

Entries are the vectors that the scorer used, fp32 on the model's device, so scores do not depend on whether a document
was cached. A key identifies the content of the document and one load of one model: vectors of other weights are never
used.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b

from sie_server.models.batch import Ids
from sie_server.models.heads.late_interaction import DocumentVectors

ENTRY_BYTES = 512  # per entry, in addition to its vectors
_loads = itertools.count()


@dataclass(frozen=True)
class CachedDocument:
    """The vectors of a document as they were scored."""

    vectors: DocumentVectors
    truncated: bool
    tokens: int  # read to compute the vectors

    @property
    def nbytes(self) -> int:
        """Bytes that the entry counts towards the budget."""
        return self.vectors.nbytes + ENTRY_BYTES


class DocumentCache:
    """The documents of all models within one budget; evicts the least recently used. Thread-safe."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._entries: OrderedDict[bytes, CachedDocument] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0
        self.hits, self.misses, self.evictions = 0, 0, 0

    def get(self, key: bytes) -> CachedDocument | None:
        """Return a document and mark it as the most recently used."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return entry

    def put(self, key: bytes, entry: CachedDocument) -> None:
        """Store a document, unless it is larger than the whole budget."""
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
        """Drop all entries whose keys start with `scope` (see `ModelDocuments.scope`)."""
        with self._lock:
            for key in [key for key in self._entries if key.startswith(scope)]:
                self._remove(key)


class ModelDocuments:
    """The entries of one load of a model, or of one adapter."""

    def __init__(self, cache: DocumentCache, model: str, revision: str | None) -> None:
        name = f"{model}\n{revision}\n{next(_loads)}"
        self.scope = blake2b(name.encode(), digest_size=8).digest()
        self._cache = cache

    def for_adapter(self) -> ModelDocuments:
        """Return a separate share for an adapter of the model; forgetting the model's share includes it."""
        part = object.__new__(ModelDocuments)
        part._cache, part.scope = self._cache, self.scope + next(_loads).to_bytes(8, "big")
        return part

    def key(self, text: str, limit: int) -> bytes:
        """Return the key of a document truncated to `limit` tokens."""
        return self._key(text.encode("utf-8", "surrogatepass"), limit)

    def window_key(self, ids: Ids) -> bytes:
        """Return the key of a window of a longer document. It uses the limit 0, which no text has."""
        return self._key(ids.tobytes(), 0)

    def _key(self, content: bytes, limit: int) -> bytes:
        return self.scope + limit.to_bytes(4, "big") + blake2b(content, digest_size=24).digest()

    def get(self, key: bytes) -> CachedDocument | None:
        """See `DocumentCache.get`."""
        return self._cache.get(key)

    def put(self, key: bytes, document: CachedDocument) -> None:
        """See `DocumentCache.put`."""
        self._cache.put(key, document)

    def forget(self) -> None:
        """Drop all entries of the share."""
        self._cache.forget(self.scope)
