"""Checkpoint files → tensors, one at a time and strictly: every tensor is requested by name and shape.

A missing tensor, a wrong shape or an unused tensor stops the load, so a head that is missing in the checkpoint is never
replaced by random weights.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sie_server.catalog.contents import instead_of_weights
from sie_server.engine.storage.names import misnamed
from sie_server.engine.storage.tally import Tally
from sie_server.errors import out_of_memory
from sie_server.files import UnusableFile, entries, open_regular, read_json
from sie_server.models.heads.sparse import M3_FILES
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
OLD_NAMES = {"gamma": "weight", "beta": "bias"}
OLD_NORM = re.compile(r"LayerNorm\.(gamma|beta)$")
log = logging.getLogger("sie_server.weights")
HEADER_BYTES = 32 * 2**20  # of a safetensors file; 100,000 tensors take 12 MiB
# the dtypes of a safetensors header (https://huggingface.co/docs/safetensors, "Format")
STORED_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


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
        self._read = _read_bin(directory / file) if file else _open_checkpoint(directory)
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


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its shape from the header, and a function that reads its values."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


TensorReaders = Mapping[str, StoredTensor]


def stored_elements(directory: Path) -> int:
    """Return how many numbers a checkpoint holds, modules' folders included, from the headers.

    Raises:
        UnsupportedCheckpoint: there are no weights, or they are not readable.
    """
    return sum(math.prod(tensor.shape) for table in _tables(directory) for tensor in table.values())


def _tables(directory: Path) -> Iterator[TensorReaders]:
    yield _open_checkpoint(directory)
    yield from (_read_bin(directory / name) for name in M3_FILES if (directory / name).exists())
    for folder in sorted(entry.name for entry in entries(directory) if entry.is_dir()):
        names = ("model.safetensors", "pytorch_model.bin")
        part = directory / folder
        if (part / "config.json").exists() and any((part / name).exists() for name in names):
            yield _open_checkpoint(part)


def _open_checkpoint(directory: Path) -> TensorReaders:
    """Open the safetensors weights (whole or sharded) of a directory, else a pickle-free `.bin`."""
    for name, read in (("model.safetensors", _read_safetensors), ("pytorch_model.bin", _read_bin)):
        single, index = directory / name, directory / f"{name}.index.json"
        if single.exists():
            return _renamed(read(single))
        if index.exists():
            return _renamed(_read_shards(index, read))
    raise UnsupportedCheckpoint(
        f"no weights in {directory}: neither model.safetensors nor pytorch_model.bin; {instead_of_weights(directory)}"
    )


def _renamed(tensors: TensorReaders) -> TensorReaders:
    """Give the norms of checkpoints converted from TensorFlow the names of today, as transformers does."""
    renamed: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        new = OLD_NORM.sub(lambda match: f"LayerNorm.{OLD_NAMES[match[1]]}", name)
        if new in renamed or (new != name and new in tensors):
            raise UnsupportedCheckpoint(f"the checkpoint has both {name!r:.100} and {new!r:.100}; keep one")
        renamed[new] = tensor
    return renamed


def tensor_readers(path: Path) -> TensorReaders:
    """Open the tensors of a file, safetensors or a pickle-free `.bin`."""
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_bin(path)


def _read_shards(index: Path, read: Callable[[Path], TensorReaders]) -> TensorReaders:
    try:
        shards = sorted(set(read_json(index)["weight_map"].values()))
        names = [
            Path(shard).name for shard in shards
        ]  # shards are in the index's directory; any other path is ignored
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise UnsupportedCheckpoint(f"{index} is not a weight index: {error!r}") from error
    readers: dict[str, StoredTensor] = {}
    for name in names:
        if not name or not _exists(index.parent / name):
            raise UnsupportedCheckpoint(
                f"{index.name} names {name!r:.100}, which is missing; the download is incomplete: download it again"
            )
        readers.update(read(index.parent / name))
    return readers


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # the name is too long
        return False


def _read_safetensors(path: Path) -> TensorReaders:
    """Check a file with the library and return readers that do not map it into memory.

    Truncating or overwriting a mapped file would kill the process or change the weights of a loaded model.
    """
    try:
        with open_regular(path) as file:
            size = int.from_bytes(file.read(8), "little")
            if size > min(HEADER_BYTES, os.fstat(file.fileno()).st_size - 8):
                raise ValueError(f"its header has {size} bytes")
            with safe_open(path, framework="pt"):  # checks the header against the file
                header = json.loads(file.read(size))
    except UnusableFile as error:
        raise UnsupportedCheckpoint(f"{path} cannot be read: {error}") from error
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        if out_of_memory(error):
            raise
        raise UnsupportedCheckpoint(f"{path} is truncated or not a safetensors file: {error}") from error
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(tuple(entry["shape"]), partial(_read_values, path, 8 + size, entry))
        for name, entry in header.items()
    }


def _read_values(path: Path, data: int, entry: Mapping[str, Any]) -> Tensor:
    """Read the values of a header entry; `data` is the offset of the values in the file."""
    if entry["dtype"] not in STORED_TYPES:
        raise UnsupportedCheckpoint(
            f"{path} holds {entry['dtype']} values; supported are {', '.join(STORED_TYPES)}"
        )
    start, end = entry["data_offsets"]
    try:
        with open_regular(path) as file:
            values = np.fromfile(file, np.uint8, count=end - start, offset=data + start)
    except OSError as error:
        raise UnsupportedCheckpoint(f"{path} cannot be read: {error}") from error
    if len(values) != end - start:
        raise UnsupportedCheckpoint(f"{path} was truncated while it was read")
    dtype, shape = STORED_TYPES[entry["dtype"]], entry["shape"]
    if not len(values):  # torch cannot reinterpret an empty array as another dtype
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(values).view(dtype).view(shape)


def _read_bin(path: Path) -> TensorReaders:
    try:
        size = _stored_bytes(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnusableFile as error:
        raise UnsupportedCheckpoint(f"{path} cannot be read: {error}") from error
    except Exception as error:  # torch raises half a dozen types for a bad file
        if out_of_memory(error):
            raise
        raise UnsupportedCheckpoint(
            f"{path} is not readable as plain weights (pickled code is never run): {error}"
        ) from error
    if not _is_table(tensors):
        raise UnsupportedCheckpoint(f"{path} is not a plain table of names and tensors")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
            raise UnsupportedCheckpoint(
                f"{path} holds {name!r:.100} as a sparse or nested tensor, or without values"
            )
        if tensor.dtype not in STORED_TYPES.values():
            raise UnsupportedCheckpoint(
                f"{path} holds {name!r:.100} as {tensor.dtype}, which is not supported"
            )
    # a view may repeat one stored number any number of times; tied tables are stored once for two names
    if sum(tensor.nbytes for tensor in tensors.values()) > 2 * size:
        raise UnsupportedCheckpoint(f"{path} describes tensors that are larger than the file")
    return {name: StoredTensor(tuple(tensor.shape), tensor.clone) for name, tensor in tensors.items()}


def _stored_bytes(path: Path) -> int:
    """Return the size of a `.bin` file after checking that it is an archive without compression, as torch writes it.

    A compressed entry could fill the memory when it is read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(4)
        if start[:1] == b"\x80":  # a pickle: reading it takes as much memory as it says
            raise ValueError(
                "it has the format of torch before 1.6; save it again with torch 1.6 or later, or with save_pretrained"
            )
        if start == b"PK\3\4":  # torch refuses any other content
            with zipfile.ZipFile(file) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("it holds compressed entries")
        return size


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and name.isprintable() and isinstance(tensor, Tensor)
        for name, tensor in value.items()
    )
