"""Checkpoint files → tensors, one at a time and strictly: every tensor is requested by name and shape.

A missing tensor, a wrong shape or an unused tensor stops the load, so a head that is missing in the checkpoint is never
replaced by random weights.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch
from torch import Tensor

from sie_server.engine.storage.formats.bin_file import read_bin
from sie_server.engine.storage.formats.checkpoint import open_checkpoint
from sie_server.engine.storage.formats.stored import StoredTensor
from sie_server.engine.storage.names import misnamed
from sie_server.engine.storage.tally import Tally
from sie_server.models.layers.rounding import MOST_INPUTS, quantise_weight
from sie_server.models.lora import Target
from sie_server.models.settings.quantised import ADVICE, quantised
from sie_server.models.spec import UnsupportedCheckpoint

# Buffers of older transformers versions (places, rotary frequencies), the pooler of a bare encoder, the decoder of a
# masked language model (saved in addition to the tables it is tied to): none of them affects a result.
HARMLESS = re.compile(
    r"(^|\.)embeddings\.position_ids$|\.rotary_emb\.inv_freq$|^((albert|bert|mpnet|new|roberta)\.)?pooler\.(dense\.)?(weight|bias)$"
    r"|^cls\.predictions\.decoder\.(weight|bias)$"
)
log = logging.getLogger("sie_server.weights")


class CheckpointWeights:
    """The tensors of a checkpoint directory; implements `models.layers.linear.Weights`.

    Every tensor is a copy, so later changes to the files cannot affect a loaded model.
    """

    def __init__(
        self,
        directory: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        int8: bool = False,
        file: str | None = None,
        tally: Tally | None = None,
    ) -> None:
        """Open the checkpoint; `file` names a table in the directory to read instead of the checkpoint's weights.

        With `int8` the products of the layers have weights of 8 bits.

        Raises:
            UnsupportedCheckpoint: there are no weights, or they are not readable.
        """
        self._read = read_bin(directory / file) if file else open_checkpoint(directory)
        self._device, self.dtype, self.int8 = device, dtype, int8
        self._tally = tally or Tally()
        self._directory = directory
        self._taken: set[str] = set()
        self._parts: list[CheckpointWeights] = []  # weights in separate files
        self._prefix = ""  # of the names in the file
        self._module = ""  # of the names in the model
        self.targets: dict[str, Target] = {}  # module → the layer it became part of

    def at(self, prefix: str) -> CheckpointWeights:
        """Return a view with `prefix.` before every name; all views share the record of tensors taken."""
        view = object.__new__(CheckpointWeights)
        view.__dict__.update(self.__dict__)
        view._prefix = f"{self._prefix}{prefix}."
        view._module = f"{self._module}{prefix}."
        return view

    def inside(self, prefix: str) -> CheckpointWeights:
        """See `Weights.inside`."""
        full = f"{self._prefix}{prefix}."
        if not any(name.startswith(full) for name in self._read):
            return self
        view = self.at(prefix)
        view._module = self._module
        return view

    def folder(self, name: str) -> CheckpointWeights:
        """Return the weights of a module in the folder `name`; `finish` checks them as well."""
        return self._part(self._directory / name)

    def file(self, name: str) -> CheckpointWeights:
        """Return a table in a separate file next to the weights; `finish` checks it as well."""
        return self._part(self._directory, name)

    def _part(self, directory: Path, file: str | None = None) -> CheckpointWeights:
        weights = CheckpointWeights(
            directory, device=self._device, dtype=self.dtype, file=file, tally=self._tally
        )
        self._parts.append(weights)
        return weights

    def take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return the tensor `name` of exactly `shape` on the device, in the model's dtype unless `dtype` is given.

        Raises:
            UnsupportedCheckpoint: it is missing, has another shape, or is not of a floating-point dtype.
        """
        stored = self._stored(name, shape)
        return self._tally.add(stored.to(device=self._device, dtype=dtype or self.dtype))

    def take_int8(self, name: str, *shape: int) -> tuple[Tensor, Tensor]:
        """Return the matrix `name` of exactly `shape` rounded to int8, and the scale of each of its rows in fp32.

        Raises:
            UnsupportedCheckpoint: as `take`, or it has values that are not finite or more inputs than can be summed.
        """
        stored = self._stored(name, shape)
        if shape[1] > MOST_INPUTS:
            raise UnsupportedCheckpoint(
                f"the weight {self._prefix + name!r} has {shape[1]} inputs; dtype 'int8' can sum {MOST_INPUTS}, "
                "use --dtype auto"
            )
        if not torch.isfinite(stored.float()).all():
            raise UnsupportedCheckpoint(
                f"the weight {self._prefix + name!r} holds values that are not finite, which dtype 'int8' cannot round"
            )
        numbers, scales = quantise_weight(stored)
        return self._tally.add(numbers), self._tally.add(scales)

    def take_rows(self, name: str, rows: list[int], *shape: int) -> Tensor:
        """Return `rows` of the tensor `name` of exactly `shape`, on the device in fp32."""
        return self._tally.add(self._stored(name, shape)[rows].to(device=self._device, dtype=torch.float32))

    def leave(self, prefix: str) -> None:
        """Mark tensors whose names begin with `prefix` as known and unused, so that `finish` ignores them."""
        full = self._prefix + prefix
        self._taken.update(name for name in self._read if name.startswith(full))

    def ignore(self, pattern: str) -> None:
        """Mark tensors whose names contain a match of `pattern`, a regular expression, as known and unused."""
        self._taken.update(name for name in self._read if re.search(pattern, name))

    def has(self, name: str) -> bool:
        """Return whether the checkpoint has a tensor `name`, without taking it."""
        return self._prefix + name in self._read

    def became(self, name: str, target: Target) -> None:
        """Record which layer the module `name` became part of."""
        self.targets[self._module + name] = target

    def check(self, name: str, *shape: int) -> None:
        """Check that the checkpoint has a tensor `name` of exactly `shape`, without reading it.

        Raises:
            UnsupportedCheckpoint: it is missing or has another shape.
        """
        self._header(name, shape)

    def _header(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        full = self._prefix + name
        if full not in self._read:
            raise UnsupportedCheckpoint(
                f"the checkpoint lacks the weight {full!r} {list(shape)}; {self._hint(full)}"
            )
        stored = self._read[full]
        if stored.shape != shape:
            raise UnsupportedCheckpoint(
                f"the weight {full!r} has shape {list(stored.shape)}, but config.json needs {list(shape)}"
            )
        return stored

    def _stored(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self._header(name, shape).read()
        full = self._prefix + name
        self._taken.add(full)
        if not tensor.is_floating_point():
            raise UnsupportedCheckpoint(
                f"the weight {full!r} has dtype {tensor.dtype}, expected a floating-point dtype; "
                f"{quantised(self._read) or f'the checkpoint may be quantised, {ADVICE}'}"
            )
        return tensor

    def finish(self, *, bare: bool = False) -> None:
        """Check that every tensor is used.

        With `bare` the model is the encoder of a checkpoint that may have been saved with a head. The head is not
        needed, and one line of the log names it. Its names begin with another part than those of the encoder.

        Raises:
            UnsupportedCheckpoint: no part of the model has requested a tensor of the checkpoint.
        """
        left = sorted(name for name in self._read if name not in self._taken and not HARMLESS.search(name))
        if bare:
            read = {name.partition(".")[0] for name in self._taken}
            heads = [name for name in left if name.partition(".")[0] not in read]
            left = [name for name in left if name not in heads]
            if heads:
                log.info(
                    "%s: an embedding model needs no head; not read: %s", self._directory, some_of(heads)
                )
        if left:
            advice = misnamed(None, left) or "check `architectures` in config.json"
            raise UnsupportedCheckpoint(
                f"the checkpoint has {len(left)} weights this architecture does not use: {some_of(left)}. "
                f"Serving it would ignore them; {advice}"
            )
        for part in self._parts:
            part.finish()

    def _hint(self, wanted: str) -> str:
        unused = sorted(name for name in self._read if name not in self._taken)
        if reason := misnamed(wanted, unused):
            return reason
        return f"unused so far: {some_of(unused)}" if unused else "it has no other weights"


def some_of(names: list[str]) -> str:
    """Return the first few names and their total number, for messages."""
    return ", ".join(names[:6]) + (f" … ({len(names)} in total)" if len(names) > 6 else "")
