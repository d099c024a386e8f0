"""The last score requests of each model, in memory only, for swaps with replay."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from sie_server.serving.requests.candidates import Candidates
from sie_server.serving.requests.options import ParsedOptions

MOST_DOCUMENTS = 1000  # of a request that is kept; the comparison of two orders takes the square of it
ITEM_BYTES = 250  # of the objects around a text


@dataclass(frozen=True)
class Recorded:
    """A request that the serving version has answered."""

    options: ParsedOptions
    candidates: Candidates
    nbytes: int
    serial: int


class ReplayBuffer:
    """Keeps at most `count` requests per model and `most_bytes` of all. Used on the event loop only."""

    def __init__(self, count: int, most_bytes: int) -> None:
        self.count, self._most_bytes = count, most_bytes
        self._by_model: dict[str, deque[Recorded]] = {}
        self._serial = 0
        self.nbytes = 0

    def add(self, model: str, options: ParsedOptions, requests: Sequence[Candidates]) -> None:
        """Keep a request with one query and texts; others cannot be compared, or not in a short time."""
        if not self.count or len(requests) != 1:
            return
        [candidates] = requests
        texts = candidates.texts
        if candidates.query is None or texts is None or len(texts) > MOST_DOCUMENTS:
            return
        nbytes = sum(sys.getsizeof(text) + ITEM_BYTES for text in (candidates.query, *texts))
        if nbytes > self._most_bytes:
            return
        kept = self._by_model.setdefault(model, deque())
        kept.append(Recorded(options, candidates, nbytes, self._serial))
        self._serial += 1
        self.nbytes += nbytes
        if len(kept) > self.count:
            self._drop_oldest(model)
        while self.nbytes > self._most_bytes:
            self._drop_oldest(min(self._by_model, key=lambda name: self._by_model[name][0].serial))

    def last(self, model: str, count: int) -> list[Recorded]:
        """Return the last `count` requests of a model, the oldest first."""
        return list(self._by_model.get(model, ()))[-count:]

    def _drop_oldest(self, model: str) -> None:
        kept = self._by_model[model]
        self.nbytes -= kept.popleft().nbytes
        if not kept:
            del self._by_model[model]
