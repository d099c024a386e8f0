"""The contenders that `cross_encoders` compares: ours, sentence-transformers, plain transformers.

All contenders take texts and return logits, so their times include tokenisation.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from bench.workload import QUERY
from torch.nn import functional as F

from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts
from sie_server.serving.device.queue import Ticket, TokenQueue

Logits = npt.NDArray[np.float64]
BATCH_SIZES = (8, 16, 32, 64)
FLOOR_ROWS = 4096


@dataclass(frozen=True)
class Contender:
    """A way of scoring the documents."""

    name: str
    score: Callable[[], Any]


def ours(engine: Engine, documents: list[str]) -> Logits:
    """Score as the server does on an idle machine, without HTTP: tokenise, form batches, run them."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as the server sets it
    job = engine.tokenize_score(ScoreTexts(QUERY, documents, engine.max_seq_length))
    del os.environ["TOKENIZERS_PARALLELISM"]
    queue = TokenQueue(max_tokens=job.tokens)
    queue.admit(Ticket(engine, job))
    while batch := queue.take():
        for work, result in zip(batch.works, engine.run(batch.works), strict=True):
            job.results[work.index] = result
    return np.array(job.results)


def sentence_transformers(directory: Path, documents: list[str], dtype: torch.dtype, batch: int) -> Contender:
    """`CrossEncoder.predict`, which sorts by length, with its usual arguments."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(directory), device="cpu", max_length=512, model_kwargs={"dtype": dtype})
    pairs = [(QUERY, document) for document in documents]
    kind = "fp32" if dtype is torch.float32 else "bf16"
    return Contender(
        f"sentence-transformers {kind}, batch {batch}",
        lambda: model.predict(pairs, batch_size=batch, show_progress_bar=False),
    )


def plain_transformers(directory: Path, documents: list[str], dtype: torch.dtype, batch: int) -> Contender:
    """An efficient loop around the model: sorted by length, each batch padded to its longest sequence."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)

    @torch.inference_mode()
    def score() -> Logits:
        logits = np.empty(len(documents))
        for part, padded in padded_batches(tokenizer, documents, batch, "pt"):
            logits[part] = model(**padded).logits.squeeze(1).float().numpy()
        return logits

    kind = "fp32" if dtype is torch.float32 else "bf16"
    return Contender(f"transformers {kind} sorted, batch {batch}", score)


def padded_batches(
    tokenizer: Any, documents: list[str], batch: int, tensors: str
) -> Iterator[tuple[list[int], Any]]:
    """Yield the places and the inputs of `batch` documents at a time: the longest first, each batch padded.

    `tensors` is "pt" for those of torch or "np" for arrays.
    """
    ids = tokenizer([QUERY] * len(documents), documents, truncation=True, max_length=512)
    order = sorted(range(len(documents)), key=lambda i: -len(ids["input_ids"][i]))
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        rows = {name: [column[i] for i in part] for name, column in ids.items()}
        yield part, tokenizer.pad(rows, return_tensors=tensors)


class Layers(Protocol):
    """A shape: its number of layers, and the inputs and outputs of the products of each one."""

    @property
    def layers(self) -> int: ...
    @property
    def sizes(self) -> list[tuple[int, int]]: ...


class Products:
    """The large matrix products of the layers alone, whose rate determines the floor."""

    def __init__(self, shape: Layers, dtype: torch.dtype) -> None:
        self._sizes = shape.sizes
        # one copy for each layer, because a single copy would stay in the processor's cache
        self._weights = [
            [torch.randn(outputs, inputs, dtype=dtype) for inputs, outputs in self._sizes]
            for _ in range(shape.layers)
        ]
        self._inputs = {size: torch.randn(FLOOR_ROWS, size, dtype=dtype) for size, _ in self._sizes}

    @property
    def flops(self) -> float:
        return sum(2.0 * FLOOR_ROWS * i * o for i, o in self._sizes) * len(self._weights)

    @torch.inference_mode()
    def __call__(self) -> None:
        for layer in self._weights:
            for weight in layer:
                F.linear(self._inputs[weight.shape[1]], weight)


def quiet_libraries() -> None:
    """Switch off progress bars and notices of the libraries."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
