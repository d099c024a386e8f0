"""One random checkpoint of every family that is served, and the reference its answers are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from checkpoints import FAMILIES, make_cross_encoder
from colbert_checkpoints import make_pylate, make_stanford
from compat_checkpoints import COMPAT, make_compat
from decoder_checkpoints import DECODERS, make_decoder
from encoders import make_bge_m3, make_encoder, make_splade
from modular_checkpoints import make_reranker
from sie_server.engine.engine import Engine
from sie_server.engine.references import Reference, reference_of


@dataclass(frozen=True)
class Made:
    """A checkpoint on disk. `reference`: where the reference library's own form of the same weights lies, if apart."""

    served: Path
    reference: Path
    template: str | None = None


@dataclass(frozen=True)
class Family:
    """`make` writes a checkpoint into an empty directory; sequences have `limit` tokens at most."""

    make: Callable[[Path], Made]
    limit: int
    tolerance: float = 1e-4  # of raw logits, or of vector components
    reference: Reference | None = None  # None: the library that `sie-server verify` would take

    def answers(self, made: Made, engine: Engine) -> Reference:
        return self.reference or reference_of(made.reference, engine)


def _one(make: Callable[..., Path], *args: Any, **kwargs: Any) -> Callable[[Path], Made]:
    def write(directory: Path) -> Made:
        path = make(directory / "checkpoint", *args, **kwargs)
        return Made(path, path)

    return write


def _decoder(family: str) -> Callable[[Path], Made]:
    return lambda directory: replace(_one(make_decoder, family)(directory), template=DECODERS[family][3])


STANFORD = {
    "query_maxlen": 16,
    "doc_maxlen": 60,
    "dim": 24,
    "mask_punctuation": True,
    "attend_to_mask_tokens": False,
}
EVERY: dict[str, Family] = {
    **{name: Family(_one(make_cross_encoder, name, max_length=96), 96) for name in FAMILIES},
    **{f"decoder {name}": Family(_decoder(name), 1024, 1e-3) for name in DECODERS},
    "ColBERT, Stanford": Family(_one(make_stanford, "bert", STANFORD), 60),
    "ColBERT, PyLate": Family(_one(make_pylate, "bert"), 60),
    "ColBERT, ModernBERT": Family(_one(make_pylate, "modernbert", dims=(32, 24)), 60),
    "ColBERT, XLM-R": Family(_one(make_pylate, "xlm-roberta"), 60),
    "ColBERT, LFM2": Family(_one(make_pylate, "lfm2"), 60),
    "ColBERT, lower-cased": Family(_one(make_pylate, "modernbert", lower_case=True), 60),
    **{name: Family(_one(make_compat, name), 100) for name in COMPAT},
    "ettin": Family(_one(lambda path: make_reranker(path)[0]), 200),
    "embedder": Family(_one(make_encoder), 128),
    "bge-m3, dense": Family(_one(make_bge_m3), 128),
    "SPLADE": Family(_one(make_splade), 128),
}
