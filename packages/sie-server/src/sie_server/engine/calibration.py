"""Measures the batch size, in tokens, with which this machine runs a model fastest.

On a GPU a pass is timed by events, in sequences of natural lengths, and its peak of memory is recorded: the memory
budget leaves that much free for batches. Nothing of that has run on a GPU yet.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
import torch

from sie_server.engine.device import release_cached
from sie_server.engine.engine import BATCH_SIZES, Engine
from sie_server.engine.job import Work, build_job
from sie_server.errors import out_of_memory
from sie_server.models.batch import Ids, Tokens

UNIFORM = 128  # tokens of a sequence on a CPU
# Lengths in pairs of a query and a passage: their median, and the spread of their logarithm.
MEDIAN, SIGMA, LONGEST = 97, 0.5, 2.7
LENGTHS = 64  # of different sequences
MOST_S = 0.025  # of a batch on a GPU: other requests wait for the running batch and the next
TEXT = (
    "The rain that falls on the hills in winter feeds the rivers of the plain until the end of the summer. "
)


def calibrate(engine: Engine, seconds: float = 1.5) -> None:
    """Measure for about `seconds` and set the engine's batch size, its rate and, on a GPU, its peak of memory."""
    for _ in calibration(engine, seconds):
        pass


def calibration(engine: Engine, seconds: float = 1.5, size: int = 0) -> Iterator[None]:
    """As `calibrate`, one forward pass per step, so that other models' batches can run between the steps.

    The sizes alternate, so that other load affects all of them equally. Each size is rated by its fastest pass. With
    `size` (tokens) only that one is measured.
    """
    sizes, spent = (size,) if size else BATCH_SIZES[engine.device.type], 0.0
    passes = Passes(engine)
    passes.seconds(sizes[0])  # the first pass also packs weights and warms up caches
    fastest = dict.fromkeys(sizes, float("inf"))
    while spent <= seconds:
        for tokens in list(fastest):
            yield
            took = _if_it_fits(passes, tokens, smallest=sizes[0])
            if took is None:
                fastest = {other: found for other, found in fastest.items() if other < tokens}
                break
            fastest[tokens] = min(fastest[tokens], took)
            spent += took
            if passes.on_gpu and fastest[tokens] > MOST_S and tokens != sizes[0]:
                fastest = {other: found for other, found in fastest.items() if other < tokens}
                break
    rates = {tokens: passes.tokens_of(tokens) / took for tokens, took in fastest.items()}
    engine.tokens_per_second = max(rates.values())
    engine.batch_tokens = min(t for t, rate in rates.items() if rate >= 0.97 * engine.tokens_per_second)
    engine.activation_bytes = passes.peak(engine.batch_tokens)


def _if_it_fits(passes: Passes, tokens: int, smallest: int) -> float | None:
    """Return the seconds of a pass, None if the device runs out of memory; for the smallest batch that is an error."""
    try:
        return passes.seconds(tokens)
    except Exception as error:
        if tokens == smallest or not out_of_memory(error):
            raise
    release_cached()  # outside the handler nothing refers to the tensors of the failed pass
    return None


class Passes:
    """Runs passes of an engine and records what they take."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.device = engine, engine.device
        self.on_gpu = engine.device.type == "cuda"
        self._works: dict[int, list[Work]] = {}
        self._peaks: dict[int, int] = {}
        self._ids = _natural_ids(engine) if self.on_gpu else _padding(engine)

    def tokens_of(self, tokens: int) -> int:
        """Return the tokens of the pass of about `tokens`."""
        return sum(len(work.tokens) for work in self._works[tokens])

    def peak(self, tokens: int) -> int:
        """Return the most bytes that a pass of at most `tokens` has taken on a GPU."""
        return max((found for size, found in self._peaks.items() if size <= tokens), default=0)

    def seconds(self, tokens: int) -> float:
        """Return the seconds of one pass; on a GPU not of the first one of a size, which also compiles and plans."""
        works = self._works.get(tokens)
        if works is not None:
            return self._timed(works, tokens)
        works = self._works[tokens] = self._works_of(tokens)
        took = self._timed(works, tokens)
        return self._timed(works, tokens) if self.on_gpu else took

    def _timed(self, works: list[Work], tokens: int) -> float:
        if not self.on_gpu:
            start = time.perf_counter()
            self._engine.run(works)
            return time.perf_counter() - start
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start_event.record()
        self._engine.run(works)
        end_event.record()
        end_event.synchronize()
        peak = torch.cuda.max_memory_allocated(self.device) - before
        self._peaks[tokens] = max(self._peaks.get(tokens, 0), peak)
        return float(start_event.elapsed_time(end_event)) / 1e3

    def _works_of(self, tokens: int) -> list[Work]:
        outputs = [output for output in self._engine.spec.outputs if output != "score"]
        job = build_job(tuple((outputs or ["score"])[:1]), [], [])
        works: list[Work] = []
        left = tokens
        for length in self._lengths():
            if works and left < length:
                break
            works.append(Work(Tokens(self._ids[:length], length), 0, job))
            left -= length
        return sorted(works, key=lambda work: -len(work.tokens))  # as in a job

    def _lengths(self) -> Iterator[int]:
        """Yield the lengths of sequences, without an end."""
        longest = self._engine.max_seq_length
        lengths = natural_lengths(longest) if self.on_gpu else [min(UNIFORM, longest)]
        while True:
            yield from lengths


def natural_lengths(longest: int) -> list[int]:
    """Return the lengths of sequences, in tokens and in mixed order: lognormal, as those of passages."""
    normal = NormalDist(sigma=SIGMA)
    spread = [normal.inv_cdf((i + 0.5) / LENGTHS) for i in range(LENGTHS)]
    lengths = [round(MEDIAN * min(float(np.exp(each)), LONGEST)) for each in spread]
    np.random.default_rng(0).shuffle(lengths)
    return [max(1, min(length, longest)) for length in lengths]


def _padding(engine: Engine) -> Ids:
    return np.full(min(UNIFORM, engine.max_seq_length), engine.spec.backbone.pad_token_id, np.int32)


def _natural_ids(engine: Engine) -> Ids:
    """Return ids of ordinary tokens, at least as many as the longest sequence has."""
    ids = [place.id for place in engine.places(TEXT, special=False)] or [engine.spec.backbone.pad_token_id]
    return np.resize(np.array(ids, np.int32), round(MEDIAN * LONGEST) + 1)
