"""Checkpoint files → tensors, one at a time and strictly: every tensor is asked for by name and shape.

A missing tensor, a wrong shape or a tensor nobody asked for stops the load; a head that is not in the checkpoint is
therefore never served with made-up weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sie_server.models.lora import Target
from sie_server.models.spec import UnsupportedCheckpoint

# Buffers older transformers versions saved, and the pooler of a bare encoder: known, and of no effect on what we serve
# (the decoder of a masked language model is saved beside the tables it is tied to)
HARMLESS = re.compile(
    r"(^|\.)embeddings\.position_ids$|^((bert|roberta)\.)?pooler\.dense\.(weight|bias)$"
    r"|^cls\.predictions\.decoder\.(weight|bias)$"
)


class CheckpointWeights:
    """The tensors of one checkpoint directory; implements `models.layers.Weights`."""

    def __init__(
        self, directory: Path, *, device: torch.device, dtype: torch.dtype, file: str | None = None
    ) -> None:
        """`file`: of this table in the directory instead of the checkpoint's weights."""
        self._read = _read_bin(directory / file) if file else _open_checkpoint(directory)
        self._device, self._dtype = device, dtype
        self._directory = directory
        self._taken: set[str] = set()
        self._parts: list[CheckpointWeights] = []  # with files of their own
        self._prefix = ""
        self.targets: dict[str, Target] = {}  # module → the layer it has become part of

    def at(self, prefix: str) -> CheckpointWeights:
        """The same source with `prefix.` before every name; what is taken counts for all views."""
        view = object.__new__(CheckpointWeights)
        view.__dict__.update(self.__dict__)
        view._prefix = f"{self._prefix}{prefix}."
        return view

    def folder(self, name: str) -> CheckpointWeights:
        """The weights of a module with its own file; `finish` sees to them too."""
        return self._part(CheckpointWeights(self._directory / name, device=self._device, dtype=self._dtype))

    def file(self, name: str) -> CheckpointWeights:
        """A small table of its own beside the checkpoint's weights, without code; `finish` sees to it too."""
        return self._part(
            CheckpointWeights(self._directory, device=self._device, dtype=self._dtype, file=name)
        )

    def _part(self, weights: CheckpointWeights) -> CheckpointWeights:
        self._parts.append(weights)
        return weights

    def take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor `name` of exactly `shape`, on the device, in the model's dtype unless `dtype` is given."""
        return self._stored(name, shape).to(device=self._device, dtype=dtype or self._dtype)

    def take_rows(self, name: str, rows: list[int], *shape: int) -> Tensor:
        """Those rows of the tensor `name` of exactly `shape`, on the device in fp32; the others stay on the host."""
        return self._stored(name, shape)[rows].to(device=self._device, dtype=torch.float32)

    def has(self, name: str) -> bool:
        """True when the checkpoint holds a tensor `name`; asking does not take it."""
        return self._prefix + name in self._read

    def became(self, name: str, target: Target) -> None:
        """Note which layer the module `name` has become part of."""
        self.targets[self._prefix + name] = target

    def _stored(self, name: str, shape: tuple[int, ...]) -> Tensor:
        full = self._prefix + name
        if full not in self._read:
            raise UnsupportedCheckpoint(
                f"the checkpoint lacks the weight {full!r} {list(shape)}; {self._hint()}"
            )
        tensor = self._read[full]()
        if tuple(tensor.shape) != shape:
            raise UnsupportedCheckpoint(
                f"the weight {full!r} has shape {list(tensor.shape)}, config.json asks for {list(shape)}"
            )
        self._taken.add(full)
        return tensor

    def finish(self) -> None:
        """Refuse a checkpoint with tensors that no part of the model has asked for."""
        left = sorted(name for name in self._read if name not in self._taken and not HARMLESS.search(name))
        if left:
            raise UnsupportedCheckpoint(
                f"the checkpoint has {len(left)} weights this architecture does not use: {some_of(left)}. "
                "Serving it would ignore them; check `architectures` in config.json"
            )

        for part in self._parts:
            part.finish()

    def _hint(self) -> str:
        unused = sorted(name for name in self._read if name not in self._taken)
        return f"it has, unused so far: {some_of(unused)}" if unused else "it has no other weights"


def some_of(names: list[str]) -> str:
    """For messages: the first few, and how many there are."""
    return ", ".join(names[:6]) + (f" … ({len(names)} in all)" if len(names) > 6 else "")


TensorReaders = Mapping[str, Callable[[], Tensor]]


def _open_checkpoint(directory: Path) -> TensorReaders:
    """Name → reader of the tensor, from safetensors (whole or sharded), else from a pickle-free `.bin`."""
    for name, read in (("model.safetensors", _read_safetensors), ("pytorch_model.bin", _read_bin)):
        single, index = directory / name, directory / f"{name}.index.json"
        if single.exists():
            return read(single)
        if index.exists():
            return _read_shards(index, read)
    raise UnsupportedCheckpoint(f"no weights in {directory}: neither model.safetensors nor pytorch_model.bin")


def tensor_readers(path: Path) -> TensorReaders:
    """The tensors of one file, safetensors or a pickle-free `.bin`."""
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_bin(path)


def _read_shards(index: Path, read: Callable[[Path], TensorReaders]) -> TensorReaders:
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise UnsupportedCheckpoint(f"{index} is not a weight index: {error!r}") from error
    readers: dict[str, Callable[[], Tensor]] = {}
    for shard in shards:
        path = index.parent / Path(shard).name  # a shard lies beside its index, whatever the index says
        if not path.exists():
            raise UnsupportedCheckpoint(f"{index.name} names {shard!r}, which is missing")
        readers.update(read(path))
    return readers


def _read_safetensors(path: Path) -> TensorReaders:
    try:
        file = safe_open(path, framework="pt")
        return {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UnsupportedCheckpoint(f"{path} is truncated or not a safetensors file: {error}") from error


def _read_bin(path: Path) -> TensorReaders:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises half a dozen types for a bad file; all mean the same here
        raise UnsupportedCheckpoint(
            f"{path} cannot be read as plain weights (code is never run): {error}"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise UnsupportedCheckpoint(f"{path} does not hold a plain name → tensor table")
    return {name: partial(_same, tensor) for name, tensor in tensors.items()}


def _same(tensor: Tensor) -> Tensor:
    return tensor
