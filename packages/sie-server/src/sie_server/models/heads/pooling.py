"""Pooling: the hidden states of a sequence → one vector, in fp32. The modes are those of sentence-transformers 6."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sie_server.models.batch import PackedBatch, Readout
from sie_server.models.heads.reduction import largest, places, total
from sie_server.models.spec import Pooling, Poolings, UnsupportedCheckpoint

# The key of each mode in older files → its name in newer ones; several are concatenated in this order
MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
NAMES: dict[str, Pooling] = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weightedmean",
    "lasttoken": "last",
}
ONE_TOKEN: dict[Poolings, Readout] = {("cls",): "first", ("last",): "last"}


def read_pooling(config: dict[str, Any]) -> Poolings:
    """Read the modes: `pooling_mode: mean` in newer files, `pooling_mode_mean_tokens: true` in older ones.

    Several modes are concatenated; without any the mode is mean.

    Raises:
        UnsupportedCheckpoint: a mode is unknown.
    """
    given = config.get("pooling_mode")
    if given is None:
        given = [name for key, name in MODES.items() if config.get(key)]
        unknown = [key for key, on in config.items() if "_mode_" in key and on and key not in MODES]
        given = [*given, *unknown] or "mean"
    names = given if isinstance(given, list) else [given]
    if not names or any(name not in NAMES for name in names):
        raise UnsupportedCheckpoint(f"pooling {given!r:.100} is not supported; supported: {', '.join(NAMES)}")
    return tuple(NAMES[name] for name in names)


def pooling_readout(how: Poolings) -> Readout:
    """Return the hidden states that `pooled_states` needs; for one token the last layer computes only its row."""
    return ONE_TOKEN.get(how, "all")


def pooled_states(hidden: Tensor, batch: PackedBatch, how: Poolings) -> Tensor:
    """Pool the states that `pooling_readout` names, as `pool` does."""
    return hidden.float() if how in ONE_TOKEN else pool(hidden, batch, how)


def pool(hidden: Tensor, batch: PackedBatch, how: Poolings) -> Tensor:
    """Pool all states: one vector per packed sequence, [rows, hidden] → [sequences, modes · hidden] fp32."""
    return torch.cat([_pooled(hidden, batch, mode) for mode in how], dim=1)


def _pooled(hidden: Tensor, batch: PackedBatch, how: Pooling) -> Tensor:
    if (rows := batch.rows_of(pooling_readout((how,)))) is not None:
        return hidden[rows].float()
    if how == "max":
        return largest(hidden, batch).float()
    if how == "weightedmean":
        weights = places(batch) + 1.0
        sizes = batch.sizes.float()
        return total(hidden, batch, weights) / (sizes * (sizes + 1) / 2)[:, None]
    sizes = batch.sizes[:, None].float()
    return total(hidden, batch) / (sizes.sqrt() if how == "mean_sqrt_len" else sizes)
