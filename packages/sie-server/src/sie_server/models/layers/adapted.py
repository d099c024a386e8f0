"""The adapters of the current forward pass (`models.lora`): which changes apply to which rows of a layer's input.

`applied` stores the batch for the current thread, so that no model family has to pass it on to its layers. Layers are
called with all rows of the batch, except inside `one_row_each`: after the rows that are read out have been selected.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from sie_server.models.batch import PackedBatch


@dataclass(frozen=True)
class _Pass:
    batch: PackedBatch
    one_row: bool = False  # inputs have one row per sequence


_pass: ContextVar[_Pass | None] = ContextVar("pass", default=None)


@contextmanager
def applied(batch: PackedBatch) -> Iterator[None]:
    """Apply the adapters of `batch` in every layer that this thread calls inside the context."""
    before = _pass.set(_Pass(batch) if batch.spans else None)
    try:
        yield
    finally:
        _pass.reset(before)


@contextmanager
def one_row_each(on: bool = True) -> Iterator[None]:
    """State that layers called inside the context get one row per sequence; `on=False`: nothing changes."""
    current = _pass.get()
    if current is None or not on:
        yield
        return
    before = _pass.set(replace(current, one_row=True))
    try:
        yield
    finally:
        _pass.reset(before)


def changes_of(layer: Any, rows: int) -> list[tuple[slice, Any]]:
    """Return the changes to `layer` for an input of `rows` rows, each with the slice of the rows it applies to.

    The input has all rows of the batch, or inside `one_row_each` one row per sequence.

    Raises:
        RuntimeError: the input has another number of rows, so the rows of each adapter are unknown.
    """
    current = _pass.get()
    if current is None:
        return []
    batch, one_row = current.batch, current.one_row
    spans = [span for span in batch.spans if layer in span.changes]
    if one_row:  # a prefix has rows, and no row that is read out
        spans = [span for span in spans if span.sequences.start < span.sequences.stop]
    if not spans:
        return []
    if rows != (batch.count if one_row else batch.rows):
        expected = f"one for each of the {batch.count} sequences" if one_row else f"all {batch.rows}"
        raise RuntimeError(
            f"cannot apply an adapter to an input of {rows} rows; expected {expected} of the batch"
        )
    return [(span.sequences if one_row else span.rows, span.changes[layer]) for span in spans]
