"""Sequences → a batch: all integers are computed on the host at once, and copied to the device in one piece."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sie_server.models.batch import Ids, PackedBatch, Picked, Prefix, Segments, Tokens
from sie_server.models.lora import Changes, Span
from sie_server.models.staging import Staging, joined

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
    lasting: Collection[Prefix] = (),
    staging: Staging | None = None,
) -> PackedBatch:
    """Pack `sequences`, the longest first, in slots of a multiple of `align` rows; `dtype` is that of attention masks.

    `varlen` adds the boundaries of the sequences for varlen attention, with `align` 1, and the prefixes that have no
    states yet; those in `lasting` get them in the pass.

    Tokens `skip_id` are not counted as positions and have position -1. `prefixes`, `adapters` and `picks`, if given,
    have one entry per sequence; `picks` are the tokens that a reader selects (`Picked`). Sequences with the same
    adapter are neighbours, and among these the ones with the same prefix. `staging` is the pinned memory of the device.
    """
    prefix_of = list(prefixes) or [None] * len(sequences)
    changes = list(adapters) or [None] * len(sequences)
    order = _order(sequences, prefix_of, changes)
    count, own_prefixes = len(order), tuple(prefix_of[i] for i in order)
    fresh = [p for p in dict.fromkeys(own_prefixes) if p and not p.layers] if varlen else []
    tokens = [sequences[i] for i in order] + [Tokens(p.ids, len(p)) for p in fresh]
    lengths = np.array([len(one) for one in tokens])
    slots = -(-lengths // align) * align
    ends = np.cumsum(slots)
    starts, rows = ends - slots, int(ends[-1])
    before = np.array([len(p or ()) for p in (*own_prefixes, *[None] * len(fresh))])
    table = _table(_own_rows(tokens, lengths, before, skip_id), starts, lengths, rows, pad_id)
    first, sizes, seen = starts[:count], lengths[:count], [one.keys for one in tokens[:count]]
    plan = _Plan(starts, lengths, before, own_prefixes, fresh, lasting) if varlen else None
    ints = {"first_rows": first, "last_rows": first + sizes - 1, "sizes": sizes, "keys": np.array(seen)}
    found = _picked([picks[i] for i in order], first) if any(own is not None for own in picks) else {}
    views = on_device(table | ints | found | (plan.ints if plan else {}), device, staging)
    bounds = [*starts.tolist(), rows]
    spans = _spans([changes[i] for i in order], bounds[: count + 1])
    users = {id(prefix_of[i]): changes[i] for i in order}
    for place, prefix in enumerate(fresh, start=count):
        if (change := users[id(prefix)]) is not None:
            spans += (Span(change, slice(bounds[place], bounds[place + 1]), slice(count, count)),)
    return PackedBatch(
        **{name: views[name] for name in (*table, *ints)},
        segments=plan.segments(views) if plan else None,
        starts=tuple(first.tolist()),
        lengths=tuple(sizes.tolist()),
        seen=tuple(seen),
        slots=tuple(slots[:count].tolist()),
        prefixes=own_prefixes,
        order=tuple(order),
        spans=spans,
        dtype=dtype,
        depth=depth,
        picked=Picked(views["picked"], views["bounds"], tuple(found["bounds"].tolist())) if found else None,
    )


def _picked(picks: list[Places | None], starts: Places) -> dict[str, Places]:
    """Return the rows of the picked tokens, and where those of each sequence begin."""
    places = [np.zeros(0, np.int64) if own is None else own for own in picks]
    counts = np.array([len(own) for own in places])
    return {"picked": np.concatenate(places) + np.repeat(starts, counts), "bounds": _boundaries(counts)}


def on_device(
    columns: Mapping[str, npt.NDArray[np.integer]], device: torch.device, staging: Staging | None = None
) -> dict[str, Tensor]:
    """Copy arrays of integers to the device at once; return them as int32 views of one tensor."""
    parts = list(columns.values())
    whole = staging.send(parts) if staging else torch.from_numpy(joined(parts)).to(device)
    return dict(zip(columns, whole.split([len(part) for part in parts]), strict=True))


class _Plan:
    """The integers of `Segments`."""

    def __init__(
        self,
        starts: Places,
        lengths: Places,
        before: Places,
        prefixes: tuple[Prefix | None, ...],
        fresh: list[Prefix],
        lasting: Collection[Prefix],
    ) -> None:
        """`before` are the prefix tokens of each segment: the sequences with `prefixes`, then the `fresh` prefixes."""
        counts, count = lengths + before, len(prefixes)
        self._most_rows, self._most_keys = int(lengths.max()), int(counts.max())
        self._known = tuple(p for p in dict.fromkeys(prefixes) if p and p.layers)
        place = {prefix: int(starts[count + i]) for i, prefix in enumerate(fresh)}
        self._kept = tuple((p, slice(row, row + len(p))) for p, row in place.items() if p in lasting)
        self.ints = {
            "segment_rows": _boundaries(lengths),
            "segment_keys": _boundaries(counts),
            "segment_one_row": np.arange(count + 1),
        }
        end = int(lengths.sum())
        for prefix in self._known:
            place[prefix] = end
            end += len(prefix)
        if place:
            first = [place[prefix] if prefix else 0 for prefix in prefixes] + [0] * len(fresh)
            self.ints["sources"] = _sources(starts, counts, before, np.array(first))

    def segments(self, views: Mapping[str, Tensor]) -> Segments:
        return Segments(
            rows=views["segment_rows"],
            keys=views["segment_keys"],
            one_row=views["segment_one_row"],
            most_rows=self._most_rows,
            most_keys=self._most_keys,
            sources=views.get("sources"),
            known=self._known,
            kept=self._kept,
        )


def _sources(starts: Places, counts: Places, before: Places, first: Places) -> Places:
    """Return the row of every key: of the prefix, which begins at `first`, or of the segment's own tokens."""
    place = np.arange(counts.sum()) - np.repeat(
        np.cumsum(counts) - counts, counts
    )  # in the keys of its segment
    in_prefix = place < np.repeat(before, counts)
    rows: Places = np.where(in_prefix, np.repeat(first, counts), np.repeat(starts - before, counts)) + place
    return rows


def _table(
    own: Mapping[str, npt.NDArray[np.integer]], starts: Places, lengths: Places, rows: int, pad_id: int
) -> dict[str, npt.NDArray[np.integer]]:
    """Return the columns of all rows, also of those that no token has."""
    place = own["place"] + np.repeat(starts, lengths)  # the row of every token
    table: dict[str, npt.NDArray[np.integer]] = {}
    for name in ("ids", "positions", "types"):
        table[name] = np.full(rows, pad_id if name == "ids" else 0, np.int32)
        table[name][place] = own[name]
    return table


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
