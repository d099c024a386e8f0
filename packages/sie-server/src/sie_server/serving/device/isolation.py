"""A batch through the model, so that the failure of one request never affects another. Runs on the device thread."""

from __future__ import annotations

import logging

from sie_server.engine.device import device_lost, release_cached, thread_spoiled
from sie_server.engine.engine import Engine
from sie_server.engine.forward import Flight
from sie_server.engine.job import QUERY, Job, Work
from sie_server.errors import InferenceError, ResourceExhausted, SIEError, out_of_memory

log = logging.getLogger("sie_server.worker")


class DeviceLost(BaseException):
    """The device cannot be used again in this process."""


class ThreadSpoiled(Exception):
    """The device cannot be used again in this thread. The works have no results and can run in another thread."""


def launch(engine: Engine, works: list[Work]) -> Flight | None:
    """Start works on a device that runs them on its own; None if that fails.

    `run_isolated` then runs them again, after the batches before them, and finds the request that fails.
    """
    try:
        return engine.launch(works)
    except Exception as error:
        if device_lost(error):
            raise DeviceLost(str(error)) from error
        log.warning("a batch failed when it was launched (%s); it is run again", type(error).__name__)
        return None


def run_isolated(engine: Engine, works: list[Work], flight: Flight | None = None) -> dict[Job, SIEError]:
    """Run works and put the results into their jobs; return the jobs that failed. `flight`: they have been launched.

    A batch that fails is run again job by job, so that the failure of one request never affects another. A batch that
    does not fit into memory is halved.
    """
    jobs = list(dict.fromkeys(work.job for work in works))
    try:
        for work, result in zip(works, flight.finish() if flight else engine.run(works), strict=True):
            if work.index != QUERY:
                work.job.put(work.index, result)
        return {}
    except Exception as error:
        if device_lost(error):  # every later pass would fail as well
            raise DeviceLost(str(error)) from error
        if thread_spoiled(error):
            raise ThreadSpoiled(str(error)) from None
        failure, no_memory = as_answer(error), out_of_memory(error)
        too_large = no_memory and len(works) > 1
        if len(jobs) == 1 and not too_large:
            log.exception("a forward pass failed")
    # Outside the handler nothing refers to the tensors of the failed pass.
    if no_memory:
        release_cached()
    if len(jobs) > 1:
        parts = [[work for work in works if work.job is job] for job in jobs]
        return {job: failure for part in parts for job, failure in run_isolated(engine, part).items()}
    if too_large:
        half = len(works) // 2
        return run_isolated(engine, works[:half]) or run_isolated(engine, works[half:])
    return {jobs[0]: failure}


def as_answer(error: Exception) -> SIEError:
    """Return the error for the caller of a failed pass."""
    if out_of_memory(error):
        return ResourceExhausted(
            "the device ran out of memory for a single text; try again later, or send shorter texts",
            retry_after_s=5,
        )
    return InferenceError(f"the model failed: {type(error).__name__}")
