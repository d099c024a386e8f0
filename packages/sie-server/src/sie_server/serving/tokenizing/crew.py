"""One call of the tokenizer library on several threads: idle threads help the request's own thread.

The library releases the interpreter's lock while it works. Helpers take parts of the texts until none is left. The
request's thread never waits for a helper that has not begun, so help costs nothing while all threads are busy.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from tokenizers import Encoding

from sie_server.engine.text.slices import BYTES_PER_CHAR, Encode
from sie_server.room import check_room

# Characters of a part: about 1 ms of work. Waking a thread takes about 0.05 ms.
PART_CHARS = 4096

Start = Callable[[Callable[[], None]], object]  # runs a function on a helper thread


class Crew:
    """Counts the threads that tokenise, and lets idle ones help. Thread-safe."""

    def __init__(self, threads: int, start: Start) -> None:
        """`threads` may tokenise at once, those of requests included; `start` may raise MemoryError or RuntimeError."""
        self._threads, self._start = threads, start
        self._busy = 0
        self._lock = threading.Lock()

    def encode(self, encode: Encode, texts: list[str]) -> list[Encoding]:
        """Return `encode(texts)`, computed part by part by this thread and its helpers."""
        with self._lock:
            self._busy += 1
            idle = self._threads - self._busy
        try:
            parts = list(_parts(texts)) if idle > 0 else [texts]
            if len(parts) < 2:
                return encode(texts)
            shared = SharedParts(encode, parts)
            self._invite(shared, min(idle, len(parts) - 1))
            shared.work()
            return shared.result()
        finally:
            self._leave()

    def _invite(self, shared: SharedParts, most: int) -> None:
        def help_out() -> None:
            try:
                shared.work()
            finally:
                self._leave()

        for _ in range(most):
            with self._lock:
                if self._busy >= self._threads:
                    return
                self._busy += 1
            try:
                self._start(help_out)
            except (MemoryError, RuntimeError):  # no memory for a thread, or the server stops
                self._leave()
                return

    def _leave(self) -> None:
        with self._lock:
            self._busy -= 1


class SharedParts:
    """Parts of a list of texts that several threads tokenise."""

    def __init__(self, encode: Encode, parts: Sequence[list[str]]) -> None:
        self._encode = encode
        self._todo = deque(enumerate(parts))
        self._found: list[list[Encoding]] = [[] for _ in parts]
        self._running = 0
        self._error: BaseException | None = None  # also a panic of the library
        self._changed = threading.Condition()

    def work(self) -> None:
        """Tokenise parts until none is left or one has failed."""
        while True:
            with self._changed:
                if not self._todo:
                    return
                place, part = self._todo.popleft()
                self._running += 1
            error = self._run(place, part)
            with self._changed:
                self._running -= 1
                if error is not None:
                    self._error = self._error or error
                    self._todo.clear()
                self._changed.notify_all()

    def _run(self, place: int, part: list[str]) -> BaseException | None:
        try:
            check_room(sum(map(len, part)) * BYTES_PER_CHAR)  # a helper allocates in a heap of its own
            self._found[place] = self._encode(part)
        except BaseException as error:
            return error
        return None

    def result(self) -> list[Encoding]:
        """Wait for the parts that helpers have begun; return the encodings in order of the texts.

        Raises:
            BaseException: the first error of any thread.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._running)
        if self._error is not None:
            raise self._error
        return [encoding for part in self._found for encoding in part]


def _parts(texts: list[str]) -> Iterator[list[str]]:
    """Yield the texts in order in parts of at least `PART_CHARS` characters, except the last."""
    start, total = 0, 0
    for end, text in enumerate(texts, 1):
        total += len(text)
        if total >= PART_CHARS:
            yield texts[start:end]
            start, total = end, 0
    if start < len(texts):
        yield texts[start:]
