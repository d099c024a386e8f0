"""The embedded model in plain transformers: the reference for the server's scores.

    score(q, d) = dense_weight · cos(mean(q), mean(d)) + maxsim_weight · Σᵢ wᵢ · maxⱼ cos(qᵢ, dⱼ) / Σᵢ wᵢ

qᵢ and dⱼ are last-layer token vectors, the template's [CLS] and [SEP] included; wᵢ is the query token's entry in
`scorer.token_weights`, 0 for template tokens. The MaxSim part of a query without weights is 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel

BATCH_TOKENS = 16_384


@dataclass(frozen=True)
class Encoded:
    """An encoded text; all vectors have unit length."""

    tokens: torch.Tensor  # [tokens, dim]
    mean: torch.Tensor  # [dim]
    weights: torch.Tensor  # [tokens]


class ReferenceScorer:
    """Scores documents with `score`, or with `encode` and `score_encoded` if they are used repeatedly."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.settings: dict[str, Any] = json.loads((folder / "sie_scorer.json").read_bytes())
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tensors = load_file(folder / "model.safetensors")
        self.token_weights = tensors.pop(self.settings["token_weights"])
        config = BertConfig.from_pretrained(folder)
        self.model = BertModel(config, add_pooling_layer=False).train(False)
        self.model.load_state_dict({name: t.float() for name, t in tensors.items()}, strict=True)
        self.model.to(dtype)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], max_length: int | None = None) -> list[Encoded]:
        self.tokenizer.enable_truncation(max_length or self.settings["max_seq_length"])
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]
        by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        encoded: dict[int, Encoded] = {}
        while by_length:
            longest = len(ids[by_length[-1]])
            batch, by_length = split_last(by_length, max(1, BATCH_TOKENS // longest))
            encoded.update(zip(batch, self._forward([ids[i] for i in batch]), strict=True))
        return [encoded[i] for i in range(len(ids))]

    def _forward(self, rows: list[list[int]]) -> list[Encoded]:
        longest = max(map(len, rows))
        input_ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])  # [rows, longest]
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        hidden = self.model(input_ids=input_ids, attention_mask=mask).last_hidden_state.float()
        return [self._encoded(vectors[: len(row)], row) for vectors, row in zip(hidden, rows, strict=True)]

    def _encoded(self, vectors: torch.Tensor, ids: list[int]) -> Encoded:
        return Encoded(
            tokens=normalize(vectors, dim=-1),
            mean=normalize(vectors.mean(dim=0), dim=-1),
            weights=self.token_weights[torch.tensor(ids)],
        )

    def score_encoded(self, query: Encoded, document: Encoded) -> float:
        dense = float(query.mean @ document.mean)
        total = float(query.weights.sum())
        best = (query.tokens @ document.tokens.T).amax(dim=1)  # [query tokens]
        maxsim = float(query.weights @ best) / total if total > 0 else 0.0
        settings = self.settings
        return float(settings["dense_weight"] * dense + settings["maxsim_weight"] * maxsim)

    def score(self, query: str, documents: Sequence[str]) -> list[float]:
        encoded_query = self.encode([query], self.settings["query_max_seq_length"])[0]
        return [self.score_encoded(encoded_query, document) for document in self.encode(documents)]


def split_last(items: list[int], count: int) -> tuple[list[int], list[int]]:
    """Return the last `count` items, and the rest."""
    return items[-count:], items[:-count]
