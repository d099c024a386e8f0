"""Packing equals a plain loop over the sequences, for any mix of lengths; adapters change exactly their own rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sie_server.models.batch import PackedBatch, Prefix, Tokens
from sie_server.models.layers.adapted import applied, changes_of, one_row_each
from sie_server.models.packing import pack

SKIPPED = 3
CPU = torch.device("cpu")


@st.composite
def sequences(draw: st.DrawFn) -> list[Tokens]:
    """Return one to a dozen sequences, many of them of one token or of none."""
    found = []
    for length in draw(st.lists(st.one_of(st.integers(0, 2), st.integers(0, 40)), min_size=1, max_size=12)):
        ids = draw(st.lists(st.integers(0, 5), min_size=length, max_size=length))
        seen = draw(st.one_of(st.none(), st.integers(min(1, length), length)))
        found.append(Tokens(np.array(ids, np.int32), draw(st.integers(0, length)), seen))
    return found


def packed(tokens: list[Tokens], align: int, **more: Any) -> PackedBatch:
    return pack(tokens, pad_id=9, align=align, device=CPU, dtype=torch.float32, **more)


def positions(ids: list[int], skip: bool) -> list[int]:
    found, count = [], 0
    for one in ids:
        counted = not (skip and one == SKIPPED)
        found.append(count if counted else -1)
        count += counted
    return found


@settings(max_examples=60, deadline=None)
@given(sequences(), st.sampled_from([1, 16]), st.booleans(), st.integers(0, 3))
def test_every_token_has_its_row(tokens: list[Tokens], align: int, skip: bool, before: int) -> None:
    prefix = Prefix(np.zeros(before, np.int32))
    batch = packed(tokens, align, skip_id=SKIPPED if skip else None, prefixes=[prefix] * len(tokens))
    assert sorted(batch.order) == list(range(len(tokens)))
    end = 0
    for place, start, length, slot in zip(batch.order, batch.starts, batch.lengths, batch.slots, strict=True):
        own, rows = tokens[place], slice(start, start + length)
        assert (start, length) == (end, len(own)) and slot % align == 0 and 0 <= slot - length < align
        assert batch.ids[rows].tolist() == own.ids.tolist()
        assert batch.positions[rows].tolist() == [p + before for p in positions(own.ids.tolist(), skip)]
        assert batch.types[rows].tolist() == [int(i >= own.type_boundary) for i in range(length)]
        assert set(batch.ids[start + length : start + slot].tolist()) <= {9}
        end = start + slot
    assert batch.rows == end
    assert batch.sizes.tolist() == list(batch.lengths)
    assert batch.keys.tolist() == list(batch.seen) == [tokens[place].keys for place in batch.order]
    assert batch.first_rows.tolist() == list(batch.starts)
    assert [group.rows.start for group in batch.groups] == [
        batch.starts[group.sequences.start] for group in batch.groups
    ]


@pytest.mark.parametrize("lengths", [(1, 1, 1, 1), (5, 1, 2, 7)])
def test_adapters_change_their_own_rows(lengths: tuple[int, ...]) -> None:
    """With one-token sequences and no alignment, the number of rows does not say whether each sequence has one row."""
    layer = object()
    first, second = {layer: "first"}, {layer: "second"}
    tokens = [Tokens(np.full(n, i, np.int32), n) for i, n in enumerate(lengths)]
    batch = packed(tokens, 1, adapters=[first, second, None, first])  # type: ignore[list-item]
    owner = {0: "first", 1: "second", 3: "first"}
    with applied(batch):
        whole = ["none"] * batch.rows
        for rows, change in changes_of(layer, batch.rows):
            whole[rows] = [change] * len(whole[rows])
        assert whole == [owner.get(i, "none") for i in batch.ids.tolist()]
        with one_row_each():
            each = ["none"] * batch.count
            for rows, change in changes_of(layer, batch.count):
                each[rows] = [change] * len(each[rows])
            assert each == [owner.get(i, "none") for i in batch.order]
        assert changes_of(layer, batch.rows)


@pytest.mark.parametrize("one_row", [False, True])
def test_an_input_of_other_rows_is_refused(one_row: bool) -> None:
    layer = object()
    tokens = [Tokens(np.zeros(n, np.int32), n) for n in (4, 2)]
    batch = packed(tokens, 1, adapters=[{layer: "change"}, None])  # type: ignore[list-item]
    right = batch.count if one_row else batch.rows
    wrong = batch.rows if one_row else batch.count
    with applied(batch), one_row_each(one_row):
        assert changes_of(layer, right)
        with pytest.raises(RuntimeError, match=f"input of {wrong} rows; expected .* {right}"):
            changes_of(layer, wrong)
    with applied(replace(batch, spans=())), one_row_each(one_row):
        assert changes_of(layer, wrong) == []
