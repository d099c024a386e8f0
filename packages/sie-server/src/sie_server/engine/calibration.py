"""Measures the batch size, in tokens, with which this machine runs a model fastest."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from sie_server.engine.engine import BATCH_SIZES, Engine
from sie_server.engine.job import Work, build_job
from sie_server.errors import out_of_memory
from sie_server.models.batch import Tokens


def calibrate(engine: Engine, seconds: float = 1.5) -> None:
    """Measure for about `seconds` and set the engine's batch size and rate."""
    for _ in calibration(engine, seconds):
        pass


def calibration(engine: Engine, seconds: float = 1.5) -> Iterator[None]:
    """As `calibrate`, one forward pass per step, so that other models' batches can run between the steps.

    The sizes alternate, so that other load affects all of them equally. Each size is rated by its fastest pass.
    """
    sizes, spent = BATCH_SIZES[engine.device.type], 0.0
    _measure(engine, sizes[0])  # the first pass also packs weights and warms up caches
    rates = dict.fromkeys(sizes, 0.0)
    while spent <= seconds:
        for size in list(rates):
            yield
            rate = _measure_if_it_fits(engine, size, smallest=sizes[0])
            if rate is None:
                rates = {other: found for other, found in rates.items() if other < size}
                break
            rates[size] = max(rates[size], rate)
            spent += size / rate
    engine.tokens_per_second = max(rates.values())
    engine.batch_tokens = min(size for size, rate in rates.items() if rate >= 0.97 * engine.tokens_per_second)


def _measure_if_it_fits(engine: Engine, tokens: int, smallest: int) -> float | None:
    """As `_measure`, but None if the device runs out of memory; for the smallest batch that is an error."""
    try:
        return _measure(engine, tokens)
    except Exception as error:
        if tokens == smallest or not out_of_memory(error):
            raise
        return None


def _measure(engine: Engine, tokens: int) -> float:
    """Return the tokens per second of one pass."""
    length = min(128, engine.max_seq_length)
    outputs = [output for output in engine.spec.outputs if output != "score"]
    job = build_job(tuple((outputs or ["score"])[:1]), [], [])
    sequence = Tokens(np.full(length, engine.spec.backbone.pad_token_id, np.int32), length)
    works = [Work(sequence, 0, job) for _ in range(max(1, tokens // length))]
    start = time.perf_counter()
    engine.run(works)
    return len(works) * length / (time.perf_counter() - start)
