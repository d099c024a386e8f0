"""The adapters of the current forward pass (`models.lora`): which changes apply to which rows of a layer's input.

`applied` stores the batch for the current thread, so that no model family has to pass it on to its layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sie_server.models.batch import PackedBatch

_batch: ContextVar[PackedBatch | None] = ContextVar("batch", default=None)


@contextmanager
def applied(batch: PackedBatch) -> Iterator[None]:
    """Apply the adapters of `batch` in every layer that this thread calls inside the context."""
    before = _batch.set(batch if batch.spans else None)
    try:
        yield
    finally:
        _batch.reset(before)


def changes_of(layer: Any, rows: int) -> list[tuple[slice, Any]]:
    """Return the changes to `layer` for an input of `rows` rows, each with the slice of the rows it applies to.

    The input has all rows of the batch, or one row per sequence.

    Raises:
        RuntimeError: the input has another number of rows, so the rows of each adapter are unknown.
    """
    batch = _batch.get()
    if batch is None:
        return []
    spans = [span for span in batch.spans if layer in span.changes]
    if not spans:
        return []
    # a slot is longer than one row, so the two never agree
    if rows not in (batch.rows, batch.count):
        raise RuntimeError(
            f"cannot apply an adapter to an input of {rows} rows; expected all {batch.rows} rows of the batch or "
            f"one for each of its {batch.count} sequences"
        )
    whole = rows == batch.rows
    return [(span.rows if whole else span.sequences, span.changes[layer]) for span in spans]
