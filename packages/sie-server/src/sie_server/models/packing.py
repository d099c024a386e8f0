"""Sequences → a batch: all integers are computed on the host at once, and copied to the device in one piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sie_server.models.batch import Ids, PackedBatch, Picked, Prefix, Segments, Tokens
from sie_server.models.lora import Changes, Span

Places = npt.NDArray[np.int64]


def pack(
    sequences: Sequence[Tokens],
    *,
    pad_id: int,
    align: int,
    varlen: bool = False,
    device: torch.device,
    dtype: torch.dtype,
    skip_id: int | None = None,
    prefixes: Sequence[Prefix | None] = (),
    depth: int | None = None,
    adapters: Sequence[Changes | None] = (),
    picks: Sequence[Places | None] = (),
) -> PackedBatch:
    """Pack `sequences`, the longest first, in slots of a multiple of `align` rows; `dtype` is that of attention masks.

    `varlen` adds the boundaries of the sequences for varlen attention, with `align` 1.

    Tokens `skip_id` are not counted as positions and have position -1. `prefixes`, `adapters` and `picks`, if given,
    have one entry per sequence; `picks` are the tokens that a reader selects (`Picked`). Sequences with the same
    adapter are neighbours, and among these the ones with the same prefix.
    """
    prefix_of = list(prefixes) or [None] * len(sequences)
    changes = list(adapters) or [None] * len(sequences)
    order = _order(sequences, prefix_of, changes)
    tokens = [sequences[i] for i in order]
    lengths = np.array([len(one) for one in tokens])
    slots = -(-lengths // align) * align
    ends = np.cumsum(slots)
    starts, rows = ends - slots, int(ends[-1])
    before = np.array([len(prefix_of[i] or ()) for i in order])
    own = _own_rows(tokens, lengths, before, skip_id)
    place = own["place"] + np.repeat(starts, lengths)  # the row of every token
    table = {
        name: np.full(rows, pad_id if name == "ids" else 0, np.int32)
        for name in ("ids", "positions", "types")
    }
    for name, column in table.items():
        column[place] = own[name]
    seen = [one.keys for one in tokens]
    packed_prefixes = tuple(prefix_of[i] for i in order)
    plan = _Plan(starts, lengths, packed_prefixes) if varlen else None
    ints = {"first_rows": starts, "last_rows": starts + lengths - 1, "sizes": lengths, "keys": np.array(seen)}
    found = _picked([picks[i] for i in order], starts) if any(own is not None for own in picks) else {}
    views = on_device(table | ints | found | (plan.ints if plan else {}), device)
    return PackedBatch(
        **{name: views[name] for name in (*table, *ints)},
        segments=plan.segments(views) if plan else None,
        starts=tuple(starts.tolist()),
        lengths=tuple(lengths.tolist()),
        seen=tuple(seen),
        slots=tuple(slots.tolist()),
        prefixes=packed_prefixes,
        order=tuple(order),
        spans=_spans([changes[i] for i in order], [*starts.tolist(), rows]),
        dtype=dtype,
        depth=depth,
        picked=Picked(views["picked"], views["bounds"], tuple(found["bounds"].tolist())) if found else None,
    )


def _picked(picks: list[Places | None], starts: Places) -> dict[str, Places]:
    """Return the rows of the picked tokens, and where those of each sequence begin."""
    places = [np.zeros(0, np.int64) if own is None else own for own in picks]
    counts = np.array([len(own) for own in places])
    return {"picked": np.concatenate(places) + np.repeat(starts, counts), "bounds": _boundaries(counts)}


def on_device(columns: Mapping[str, npt.NDArray[np.integer]], device: torch.device) -> dict[str, Tensor]:
    """Copy arrays of integers to the device at once; return them as int32 views of one tensor."""
    whole = np.concatenate(list(columns.values()), dtype=np.int32, casting="same_kind")
    parts = torch.from_numpy(whole).to(device).split([len(column) for column in columns.values()])
    return dict(zip(columns, parts, strict=True))


class _Plan:
    """The integers of `Segments`."""

    def __init__(self, starts: Places, lengths: Places, prefixes: tuple[Prefix | None, ...]) -> None:
        self._most_rows = int(lengths.max())
        self._prefixes = tuple({id(p): p for p in prefixes if p}.values())
        before = np.array([len(prefix or ()) for prefix in prefixes])
        counts = lengths + before
        self._most_keys = int(counts.max())
        self.ints = {
            "segment_rows": _boundaries(lengths),
            "segment_keys": _boundaries(counts),
            "segment_one_row": np.arange(len(lengths) + 1),
        }
        if self._prefixes:
            self.ints["sources"] = self._sources(starts, lengths, before, prefixes)

    def _sources(
        self, starts: Places, lengths: Places, before: Places, prefixes: tuple[Prefix | None, ...]
    ) -> Places:
        """Return the row of every key: of its prefix, whose rows follow those of the batch, or of the sequence."""
        end, place = int(lengths.sum()), {id(None): 0}
        for prefix in self._prefixes:
            place[id(prefix)] = end
            end += len(prefix)
        counts = lengths + before
        own = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # place in its keys
        first = np.repeat(np.array([place.get(id(prefix), 0) for prefix in prefixes]), counts)
        rest = np.repeat(starts - before, counts)
        rows: Places = np.where(own < np.repeat(before, counts), first, rest) + own
        return rows

    def segments(self, views: Mapping[str, Tensor]) -> Segments:
        return Segments(
            rows=views["segment_rows"],
            keys=views["segment_keys"],
            one_row=views["segment_one_row"],
            most_rows=self._most_rows,
            most_keys=self._most_keys,
            sources=views.get("sources"),
            prefixes=self._prefixes,
        )


def _boundaries(counts: Places) -> Places:
    return np.concatenate(([0], np.cumsum(counts)))


def _order(
    sequences: Sequence[Tokens], prefixes: Sequence[Prefix | None], changes: Sequence[Changes | None]
) -> list[int]:
    places = {id(thing): place for place, thing in enumerate((*prefixes, *changes))}

    def key(i: int) -> tuple[int, int, int]:
        return places[id(changes[i])], places[id(prefixes[i])], -len(sequences[i])

    return sorted(range(len(sequences)), key=key)


def _own_rows(
    tokens: list[Tokens], lengths: Places, before: Places, skipped: int | None
) -> dict[str, npt.NDArray[np.integer]]:
    """Return id, place in its sequence, position and type of every token, each [tokens of all sequences]."""
    ids: Ids = np.concatenate([one.ids for one in tokens])
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(ids)) - np.repeat(starts, lengths)
    boundaries = np.array([one.type_boundary for one in tokens])
    positions = place
    if skipped is not None:
        counted = ids != skipped
        total = _boundaries(counted)  # counted tokens before each
        positions = np.where(counted, total[:-1] - np.repeat(total[starts], lengths), -1)
    return {
        "ids": ids,
        "place": place,
        "positions": positions + np.repeat(before, lengths),
        "types": (place >= np.repeat(boundaries, lengths)).astype(np.int32),
    }


def _spans(adapters: list[Changes | None], starts: list[int]) -> tuple[Span, ...]:
    """Return the spans of a batch; the last entry of `starts` is the end of the last sequence."""
    spans = []
    for _, members in groupby(range(len(adapters)), key=lambda i: id(adapters[i])):
        indices = list(members)
        first, end, changes = indices[0], indices[-1] + 1, adapters[indices[0]]
        if changes is not None:
            spans.append(Span(changes, slice(starts[first], starts[end]), slice(first, end)))
    return tuple(spans)
