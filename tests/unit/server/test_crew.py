"""The texts of one call of the tokenizer library, spread over threads: same results, errors, and no waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest

from sie_server.engine.text.slices import encode_spread, spread_by
from sie_server.serving.tokenizing.crew import PART_CHARS, Crew

TEXTS = [f"{i:04d}" + "x" * (PART_CHARS // 3) for i in range(20)]


class Recorder:
    """Stands for the library: returns the start of each text. A thread's first call waits for `parties` threads."""

    def __init__(self, *, parties: int = 1, broken: str = "") -> None:
        self.threads: set[int] = set()
        self.sizes: list[int] = []
        self._meet = threading.Barrier(parties)
        self._broken = broken

    def __call__(self, texts: list[str]) -> list[Any]:
        me = threading.get_ident()
        self.sizes.append(len(texts))
        if me not in self.threads:
            self.threads.add(me)
            self._meet.wait(60)
        if self._broken and any(text.startswith(self._broken) for text in texts):
            raise KeyError(self._broken)
        return [text[:4] for text in texts]


@pytest.fixture
def start() -> Iterator[Callable[[Callable[[], None]], object]]:
    with ThreadPoolExecutor(4) as threads:
        yield threads.submit


def test_idle_threads_help_and_results_keep_their_order(start: Any) -> None:
    recorder = Recorder(parties=3)  # fails unless three threads take part
    assert Crew(3, start).encode(recorder, TEXTS) == [text[:4] for text in TEXTS]
    assert len(recorder.threads) == 3


@pytest.mark.parametrize("texts", [[], ["a"], ["x" * PART_CHARS], ["a", "b", ""]])
def test_few_characters_are_one_call(start: Any, texts: list[str]) -> None:
    recorder = Recorder()
    assert Crew(3, start).encode(recorder, texts) == [text[:4] for text in texts]
    assert recorder.sizes == [len(texts)]


def test_texts_without_characters_are_kept(start: Any) -> None:
    texts = ["", *TEXTS, "", "", "x" * PART_CHARS, ""]
    assert Crew(2, start).encode(Recorder(), texts) == [text[:4] for text in texts]


def test_a_busy_crew_does_not_help(start: Any) -> None:
    crew, inside, leave = Crew(2, start), threading.Barrier(2), threading.Event()

    def held(texts: list[str]) -> list[Any]:
        inside.wait(60)
        assert leave.wait(60)
        return list(texts)

    others = ThreadPoolExecutor(1)
    busy = others.submit(crew.encode, held, ["a"])
    inside.wait(60)
    recorder = Recorder()
    crew.encode(recorder, TEXTS)
    assert recorder.sizes == [len(TEXTS)]  # the whole list in one call of this thread
    leave.set()
    assert busy.result(60) == ["a"]
    recorder = Recorder(parties=2)
    crew.encode(recorder, TEXTS)
    assert len(recorder.threads) == 2  # the place is free again
    others.shutdown()


@pytest.mark.parametrize("broken", [TEXTS[0][:4], TEXTS[11][:4], TEXTS[-1][:4]])
def test_an_error_of_any_part_is_raised_and_frees_the_crew(start: Any, broken: str) -> None:
    helping: list[Any] = []
    crew = Crew(3, lambda work: helping.append(start(work)))
    for _ in range(5):
        with pytest.raises(KeyError, match=broken):
            crew.encode(Recorder(broken=broken), TEXTS)
    wait(helping, 60)
    recorder = Recorder(parties=3)
    crew.encode(recorder, TEXTS)
    assert len(recorder.threads) == 3


@pytest.mark.parametrize("error", [MemoryError("can't start new thread"), RuntimeError("shutdown")])
def test_a_thread_that_cannot_start_is_done_without(error: Exception) -> None:
    def start(work: Callable[[], None]) -> None:
        raise error

    assert Crew(3, start).encode(Recorder(), TEXTS) == [text[:4] for text in TEXTS]


def test_a_helper_that_never_begins_is_not_waited_for() -> None:
    waiting: list[Callable[[], None]] = []
    recorder = Recorder()
    assert Crew(3, waiting.append).encode(recorder, TEXTS) == [text[:4] for text in TEXTS]
    assert len(waiting) == 2
    for late in waiting:
        late()  # finds nothing to do
    assert recorder.threads == {threading.get_ident()}


def test_only_threads_with_a_crew_are_helped(start: Any) -> None:
    recorder = Recorder()
    encode_spread(recorder, TEXTS)
    assert recorder.sizes == [len(TEXTS)]
    recorder = Recorder(parties=2)
    with spread_by(Crew(2, start).encode):
        encode_spread(recorder, TEXTS)
    assert len(recorder.threads) == 2
    recorder = Recorder()
    encode_spread(recorder, TEXTS)
    assert recorder.sizes == [len(TEXTS)]
