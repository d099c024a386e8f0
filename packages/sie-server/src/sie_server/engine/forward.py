"""Works in, results out: one forward pass over works of any jobs. Runs on the device thread."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from sie_server.engine.job import Work
from sie_server.engine.kinds.base import Reader
from sie_server.engine.kinds.pending import Pending
from sie_server.engine.leaving import Leaving
from sie_server.engine.steps import is_recording, step
from sie_server.models.batch import PackedBatch, Prefix, Tokens
from sie_server.models.families.decoders.decoder import Decoder
from sie_server.models.layers.adapted import applied
from sie_server.models.layers.attention.choice import choose
from sie_server.models.lora import Changes
from sie_server.models.packing import Places, pack
from sie_server.models.registry import Backbone
from sie_server.models.spec import BackboneSpec
from sie_server.models.staging import Staging

log = logging.getLogger("sie_server.forward")
# Key rows of the sequences with a shared prefix in one pass. A prefix is copied before the keys of every sequence: in
# bf16, with 8 key heads of 128 dimensions, this number of rows takes 512 MiB per layer.
KEY_ROWS = 131_072


@dataclass(frozen=True)
class _Pass:
    """A pass that has been launched, and the copies of its results."""

    places: list[int]  # of its works among those of the run
    pending: Pending
    leaving: Leaving

    def finish_into(self, results: list[Any]) -> None:
        """Wait for the pass, and put the result of each of its works into `results`."""
        with step("read_out"):
            found = self.pending.finish(self.leaving.arrays())
        for place, result in zip(self.places, found, strict=True):
            results[place] = result


class Flight:
    """Works whose last pass may still run on the device."""

    def __init__(self, last: _Pass, results: list[Any]) -> None:
        self._last, self._results = last, results

    def finish(self) -> list[Any]:
        """Wait for the pass, and return one result per work, in the order of the works."""
        self._last.finish_into(self._results)
        return self._results


class Forward:
    """A backbone and the reader of its hidden states."""

    def __init__(
        self,
        spec: BackboneSpec,
        backbone: Backbone,
        reader: Reader,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.backbone, self.reader = backbone, reader
        self._spec, self._device, self._dtype = spec, device, dtype
        self.attention = choose(spec.attention, device, dtype)
        self._staging = Staging(device) if device.type == "cuda" else None
        self._varlen = self.attention.kind == "varlen"
        log.info("attention: %s; %s", self.attention.kind, self.attention.why)

    def run(self, works: list[Work]) -> list[Any]:
        """Run works of any jobs and return one result per work, None for a query."""
        return self.launch(works).finish()

    def launch(self, works: list[Work]) -> Flight:
        """Start works of any jobs. On a GPU this returns before their last pass has ended.

        Works of jobs with different cutoff layers are run in separate passes, and so are more sequences than the
        reader takes at a time.
        """
        *earlier, last = self._passes(works)
        results: list[Any] = [None] * len(works)
        for places in earlier:  # finished at once, because the results of a pass take memory on the device
            self._start(works, places).finish_into(results)
        return Flight(self._start(works, last), results)

    def _passes(self, works: list[Work]) -> Iterator[list[int]]:
        """Yield the places in `works` of each pass."""
        most = self.reader.most() or len(works)
        for depth in dict.fromkeys(work.job.cutoff_layer for work in works):
            places: list[int] = []
            keys = 0
            for place, work in enumerate(works):
                if work.job.cutoff_layer != depth:
                    continue
                own = len(work.job.prefix) + len(work.tokens) if work.job.prefix and self._varlen else 0
                if places and (len(places) == most or keys + own > KEY_ROWS):
                    yield places
                    places, keys = [], 0
                places.append(place)
                keys += own
            yield places

    def _start(self, works: list[Work], places: list[int]) -> _Pass:
        pending = self._launch([works[place] for place in places])
        return _Pass(places, pending, Leaving(pending.tensors))

    @torch.inference_mode()
    def _launch(self, works: list[Work]) -> Pending:
        pack = partial(self._pack, depth=works[0].job.cutoff_layer)
        # read once: a job releases its prefix when its caller disconnects, also in the middle of a pass
        prefixes = [work.job.prefix for work in works]
        changes = [work.job.changes for work in works]
        if any(prefixes) and not isinstance(self.backbone, Decoder):
            raise RuntimeError("a prefix is shared, but this backbone is not a decoder")
        if any(prefixes) and not self._varlen:
            own = {id(prefix): (prefix, change) for prefix, change in zip(prefixes, changes, strict=True)}
            with step("forward"):
                assert isinstance(self.backbone, Decoder)
                compute_prefixes(self.backbone, own.values(), pack)
        with step("pack"):
            picks = [self.reader.picks(work) for work in works]
            batch = pack(
                [work.tokens for work in works],
                changes,
                prefixes,
                picks=picks,
                lasting=_lasting(works, prefixes),
            )
        with applied(batch):
            with step("forward"):
                hidden = self.backbone.forward(batch, self.reader.readout)
                if is_recording() and self._device.type == "cuda":
                    torch.cuda.synchronize(
                        self._device
                    )  # otherwise the step would end when kernels are launched
            with step("read_out"):
                return self.reader.read(hidden, batch, works)

    def _pack(
        self,
        sequences: list[Tokens],
        adapters: Sequence[Changes | None],
        prefixes: Sequence[Prefix | None] = (),
        depth: int | None = None,
        picks: Sequence[Places | None] = (),
        lasting: Collection[Prefix] = (),
    ) -> PackedBatch:
        pad = self._spec.pad_token_id
        return pack(
            sequences,
            pad_id=pad,
            skip_id=pad if self._spec.skip_padding_positions else None,
            align=self.attention.align,
            varlen=self._varlen,
            device=self._device,
            dtype=self._dtype,
            prefixes=prefixes,
            depth=depth,
            adapters=adapters,
            picks=picks,
            lasting=lasting,
            staging=self._staging,
        )


def _lasting(works: list[Work], prefixes: list[Prefix | None]) -> set[Prefix]:
    """Return the prefixes of jobs that have work outside this pass."""
    here = Counter(id(work.job) for work in works)
    return {
        prefix
        for work, prefix in zip(works, prefixes, strict=True)
        if prefix and here[id(work.job)] < len(work.job.work)
    }


def compute_prefixes(
    decoder: Decoder,
    prefixes: Iterable[tuple[Prefix | None, Changes | None]],
    pack: Callable[[list[Tokens], list[Changes | None]], PackedBatch],
) -> None:
    """Run the `prefixes` that have no states yet, each with its adapter's changes, and store their states.

    `pack` makes a batch of the depth that all their jobs share.
    """
    missing = [(prefix, changes) for prefix, changes in prefixes if prefix and not prefix.layers]
    if not missing:
        return
    sequences = [Tokens(prefix.ids, len(prefix)) for prefix, _ in missing]
    batch = pack(sequences, [changes for _, changes in missing])
    with applied(batch):
        states = decoder.prefix_states(batch)
    for place, own in zip(batch.order, states, strict=True):
        missing[place][0].layers = own
