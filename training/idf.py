"""Inverse document frequencies of word pieces: the table that weights query tokens.

`idf[t] = log(1 + (N - df[t] + 0.5) / (df[t] + 0.5))`, divided by its maximum, where df[t] is the number of documents
with the word piece. The scorer uses it with exponent 1, chosen on the selection sets (training/README.md), and 0 for
the tokens that a template adds.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

TEMPLATE_TOKENS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
POWER = 1.0
BATCH = 2048


def read_documents(folder: Path) -> Iterator[str]:
    """Yield the texts of a collection in file order: the title, if there is one, and the text."""
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield f"{row['title']} {row['text']}".strip()


def count_documents(tokenizer: Tokenizer, texts: Sequence[str]) -> IntArray:
    """Count the texts in which each word piece occurs. # [vocab]"""
    counts = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    for start in range(0, len(texts), BATCH):
        for encoding in tokenizer.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False):
            counts[np.unique(np.asarray(encoding.ids, dtype=np.int64))] += 1
    return counts


def template_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of the tokens without content. Raises ValueError if the vocabulary lacks one of them."""
    ids = {token: tokenizer.token_to_id(token) for token in TEMPLATE_TOKENS}
    if missing := [token for token, number in ids.items() if number is None]:
        raise ValueError(f"the vocabulary has no {', '.join(missing)}")
    return [number for number in ids.values() if number is not None]


def inverse_document_frequency(document_counts: IntArray, documents: int) -> FloatArray:
    """Return the idf scaled to (0, 1]. # [vocab]"""
    idf = np.log1p((documents - document_counts + 0.5) / (document_counts + 0.5))
    scaled: FloatArray = idf / idf.max()
    return scaled


def token_weights(idf: FloatArray, silent: Iterable[int], power: float = POWER) -> npt.NDArray[np.float32]:
    """Return the idf to the power of `power`, and 0 for the ids without content. # [vocab]"""
    weights = np.power(idf, power).astype(np.float32)
    weights[list(silent)] = 0.0
    return weights
