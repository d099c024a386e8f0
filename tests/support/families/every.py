"""One random checkpoint of every served family, and the reference for its results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sie_server.engine.engine import Engine
from sie_server.verify.cross_encoders import sequence_classifier
from sie_server.verify.judges import reference_of
from sie_server.verify.references import Answers, Ask, Reference
from support.checkpoints import rankers
from support.checkpoints.colbert import make_pylate, make_stanford
from support.checkpoints.cross_encoders import FAMILIES, make_cross_encoder
from support.checkpoints.decoders import DECODERS, make_decoder
from support.checkpoints.embedders import make_embedder
from support.checkpoints.encoders import make_bge_m3, make_encoder, make_splade
from support.checkpoints.library import (
    LIBRARY,
    make_library_classifier,
    make_library_colbert,
    make_library_embedder,
    make_library_splade,
)
from support.checkpoints.modular import make_reranker
from support.checkpoints.rankers import MAKERS
from support.families.jina_bert import RERANKERS, classified, encoded, make_jina_bert
from support.families.relatives import RELATIVES, make_relative


@dataclass(frozen=True)
class Made:
    """A checkpoint on disk, and a reference if `sie-server verify` has none for it."""

    served: Path
    template: str | None = None
    reference: Reference | None = None

    def ask(self, engine: Engine) -> Ask:
        """Load the reference."""
        reference = self.reference or reference_of(self.served, engine)
        return reference(self.served, engine)


@dataclass(frozen=True)
class Family:
    """`make` writes a checkpoint into an empty directory; sequences have at most `limit` tokens."""

    make: Callable[[Path], Made]
    limit: int
    tolerance: float = 1e-4  # of raw logits, or of vector components


def _one(make: Callable[..., Path], *args: Any, **kwargs: Any) -> Callable[[Path], Made]:
    return lambda directory: Made(make(directory / "checkpoint", *args, **kwargs))


def _decoder(family: str, **kwargs: Any) -> Callable[[Path], Made]:
    template = DECODERS[family][3]
    return lambda directory: Made(make_decoder(directory / "checkpoint", family, **kwargs), template)


def _relative(name: str) -> Callable[[Path], Made]:
    """Write a checkpoint under published names; the reference loads the same weights in the library's form."""

    def make(directory: Path) -> Made:
        published, library = make_relative(directory, RELATIVES[name])
        return Made(published, None, lambda _, engine: sequence_classifier(library, engine))

    return make


def _jina_bert(name: str) -> Callable[[Path], Made]:
    def make(directory: Path) -> Made:
        directory.mkdir(exist_ok=True)
        case = make_jina_bert(directory, name)

        def ask(query: str, documents: list[str]) -> Answers:
            inputs = [encoded(case, [query], [text]) for text in documents]
            logits = [float(classified(case, one)[0]) for one in inputs]
            return Answers("its formulas", "logits", logits, [one["input_ids"][0].tolist() for one in inputs])

        return Made(case.directory, None, lambda *_: ask)

    return make


def _prompted(make: Callable[[Path], rankers.Made]) -> Callable[[Path], Made]:
    """Write a prompted reranker; its reference adds the head to a class of transformers."""

    def write(directory: Path) -> Made:
        made = make(directory / "checkpoint")

        def ask(query: str, documents: list[str]) -> Answers:
            ids = [made.ids(query, document) for document in documents]
            return Answers("transformers", "logits", [made.logit(one) for one in ids], ids)

        return Made(made.directory, made.template, lambda *_: ask)

    return write


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
    **{f"score head {name}": Family(_decoder(name, labels=1), 1024, 1e-3) for name in ("gemma2", "qwen3")},
    "ColBERT, Stanford": Family(_one(make_stanford, "bert", STANFORD), 60),
    "ColBERT, PyLate": Family(_one(make_pylate, "bert"), 60),
    "ColBERT, ModernBERT": Family(_one(make_pylate, "modernbert", dims=(32, 24)), 60),
    "ColBERT, XLM-R": Family(_one(make_pylate, "xlm-roberta"), 60),
    "ColBERT, LFM2": Family(_one(make_pylate, "lfm2"), 60),
    "ColBERT, lower-cased": Family(_one(make_pylate, "modernbert", lower_case=True), 60),
    **{name: Family(_one(make_library_classifier, name), 100) for name in LIBRARY},
    **{f"embedder {name}": Family(_one(make_library_embedder, name), 100) for name in LIBRARY},
    "ettin": Family(_one(lambda path: make_reranker(path)[0]), 200),
    **{name: Family(_relative(name), 200) for name in RELATIVES},
    **{f"JinaBERT {name}": Family(_jina_bert(name), 700) for name in RERANKERS},
    **{name: Family(_prompted(make), 1024, 1e-3) for name, make in MAKERS.items()},
    "embedder": Family(_one(make_encoder), 128),
    **{
        f"embedder {name}": Family(_one(make_embedder, name), 96)
        for name in ("gemma", "llama", "qwen2", "qwen3")
    },
    "bge-m3, dense": Family(_one(make_bge_m3), 128),
    **{f"ColBERT, {name}": Family(_one(make_library_colbert, name), 60) for name in ("mpnet", "deberta-v2")},
    "SPLADE": Family(_one(make_splade), 128),
    **{
        f"SPLADE {name}": Family(_one(make_library_splade, name), 100)
        for name in ("distilbert", "modernbert", "mpnet", "xlm-roberta")
    },
}
