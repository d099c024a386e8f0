"""Works in, results out: one forward pass of a loaded model over any mix of works. Runs on the device thread."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from sie_server.engine.job import Work
from sie_server.engine.kinds.embeddings import Reader
from sie_server.engine.text.prefix import compute_prefixes
from sie_server.models.batch import PackedBatch, Prefix, Tokens, pack
from sie_server.models.families.decoders.decoder import Decoder
from sie_server.models.layers.adapted import applied
from sie_server.models.lora import Changes
from sie_server.models.registry import Backbone
from sie_server.models.spec import BackboneSpec

CPU_ALIGN = 16  # see models.packed


class Forward:
    """A backbone and what reads it out."""

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

    @torch.inference_mode()
    def run(self, works: list[Work]) -> list[Any]:
        """One result per work, in order (None for a query), of one forward pass over any mix of works.

        Works whose jobs stop after different layers make a pass each.
        """
        depths = list(dict.fromkeys(work.job.cutoff_layer for work in works))
        if len(depths) == 1:
            return self._run(works, depths[0])
        results: list[Any] = [None] * len(works)
        for depth in depths:
            places = [place for place, work in enumerate(works) if work.job.cutoff_layer == depth]
            for place, result in zip(places, self._run([works[p] for p in places], depth), strict=True):
                results[place] = result
        return results

    def _run(self, works: list[Work], depth: int | None) -> list[Any]:
        pack = partial(self._pack, depth=depth)
        # taken once: a job whose caller hangs up in the middle of the pass lets go of its own
        prefixes, under = [work.job.prefix for work in works], [work.job.changes for work in works]
        if any(prefixes):
            assert isinstance(self.backbone, Decoder)
            own = {id(prefix): (prefix, changes) for prefix, changes in zip(prefixes, under, strict=True)}
            compute_prefixes(self.backbone, own.values(), pack)
        batch = pack([work.tokens for work in works], under, prefixes)
        with applied(batch):
            hidden = self.backbone.forward(batch, self.reader.readout)
            return self.reader.read(hidden, batch, works)

    def _pack(
        self,
        sequences: list[Tokens],
        adapters: Sequence[Changes | None],
        prefixes: Sequence[Prefix | None] = (),
        depth: int | None = None,
    ) -> PackedBatch:
        pad = self._spec.pad_token_id
        return pack(
            sequences,
            pad_id=pad,
            skip_id=pad if self._spec.skip_padding_positions else None,
            align=CPU_ALIGN,
            device=self._device,
            dtype=self._dtype,
            prefixes=prefixes,
            depth=depth,
            adapters=adapters,
        )
