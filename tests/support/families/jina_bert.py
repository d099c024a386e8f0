"""JinaBERT (jina-reranker-v1, jina-embeddings-v2): random checkpoints, and its formulas in plain torch.

No library on PyPI implements this architecture, and the code of its repository is never run. The reference therefore
follows the papers: padded, one head after the other, without code of the server. Checkpoints use the names and
configuration fields of the published ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch.nn import functional as F

from support.checkpoints.cross_encoders import SPECIAL_TOKENS, bert_tokenizer, roberta_tokenizer
from support.checkpoints.encoders import write_json, write_modules

LIMIT, SIZE, LAYERS, INNER, EPS = 700, 48, 3, 96, 1e-12
Tensors = dict[str, torch.Tensor]
# Press et al.: a geometric sequence from 2^(-8/n) for n heads. If n is not a power of two, the sequence of the next
# lower power, then every second value of the next higher power.
SLOPES = {
    4: [1 / 4, 1 / 16, 1 / 64, 1 / 256],
    6: [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8],
    8: [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256],
    12: [2.0**-i for i in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5],
}
AUTO_MAP = {
    name: f"jinaai/jina-bert-implementation--{target}"
    for name, target in {
        "AutoConfig": "configuration_bert.JinaBertConfig",
        "AutoModel": "modeling_bert.JinaBertModel",
        "AutoModelForMaskedLM": "modeling_bert.JinaBertForMaskedLM",
        "AutoModelForSequenceClassification": "modeling_bert.JinaBertForSequenceClassification",
    }.items()
}


@dataclass(frozen=True)
class Kind:
    """One published form of such checkpoints."""

    architecture: str
    feed_forward: str
    heads: int
    tokenizer: Callable[[], Any]
    head: str = "classifier"  # or "mlm", or empty for an encoder alone
    prefix: str = "bert."


KINDS = {
    # named as an encoder; RoBERTa's tokenizer has no token types, but the model has two
    "reranker-v1": Kind("JinaBertModel", "geglu", 6, roberta_tokenizer),
    "reranker-edited": Kind("JinaBertForSequenceClassification", "reglu", 8, bert_tokenizer),
    "reranker-plain": Kind("JinaBertForMaskedLM", "original", 4, bert_tokenizer),
    "embeddings-v2": Kind("JinaBertForMaskedLM", "geglu", 12, bert_tokenizer, "mlm", ""),
    "embeddings-prefixed": Kind("JinaBertModel", "geglu", 4, bert_tokenizer, "", "bert."),
}
RERANKERS = sorted(name for name in KINDS if name.startswith("reranker"))
EMBEDDERS = sorted(name for name in KINDS if name.startswith("embeddings"))


def shapes(kind: Kind, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the checkpoint."""
    found: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (vocabulary, SIZE),
        "embeddings.token_type_embeddings.weight": (2, SIZE),
        "embeddings.LayerNorm": (SIZE,),
        "pooler.dense": (SIZE, SIZE),
    }
    for i in range(LAYERS):
        layer, attention = f"encoder.layer.{i}", f"encoder.layer.{i}.attention"
        found |= {f"{attention}.self.{part}": (SIZE, SIZE) for part in ("query", "key", "value")}
        found |= {f"{attention}.output.dense": (SIZE, SIZE), f"{attention}.output.LayerNorm": (SIZE,)}
        if kind.feed_forward == "original":
            found |= {f"{layer}.intermediate.dense": (INNER, SIZE), f"{layer}.output.dense": (SIZE, INNER)}
            found |= {f"{layer}.output.LayerNorm": (SIZE,)}
        else:
            found |= {f"{layer}.mlp.gated_layers.weight": (2 * INNER, SIZE)}
            found |= {f"{layer}.mlp.wo": (SIZE, INNER), f"{layer}.mlp.layernorm": (SIZE,)}
    found = {f"{kind.prefix}{name}": shape for name, shape in found.items()}
    if kind.head == "classifier":
        found |= {"classifier": (1, SIZE)}
    elif kind.head == "mlm":
        found |= {"cls.predictions.transform.dense": (SIZE, SIZE), "cls.predictions.bias": (vocabulary,)}
        found |= {"cls.predictions.transform.LayerNorm": (SIZE,)}
    return found


def weights(kind: Kind, vocabulary: int) -> Tensors:
    torch.manual_seed(3)
    tensors: Tensors = {}
    for name, shape in shapes(kind, vocabulary).items():
        if name.endswith((".weight", ".bias")):
            tensors[name] = 0.25 * torch.randn(shape)
            continue
        tensors[f"{name}.weight"] = (
            0.25 * torch.randn(shape) if len(shape) > 1 else 1 + 0.1 * torch.randn(shape)
        )
        tensors[f"{name}.bias"] = 0.1 * torch.randn(shape[0])
    return tensors


@dataclass
class JinaBert:
    directory: Path
    kind: Kind
    tensors: Tensors
    tokenizer: Any


def make_jina_bert(root: Path, name: str) -> JinaBert:
    kind = KINDS[name]
    tokenizer = kind.tokenizer()
    tensors = weights(kind, tokenizer.get_vocab_size())
    save_file(tensors, root / "model.safetensors")
    config = {
        "architectures": [kind.architecture],
        "auto_map": AUTO_MAP,
        "emb_pooler": "mean",
        "feed_forward_type": kind.feed_forward,
        "hidden_act": "gelu",
        "hidden_size": SIZE,
        "intermediate_size": INNER,
        "layer_norm_eps": EPS,
        "max_position_embeddings": LIMIT,
        "model_type": "bert",
        "num_attention_heads": kind.heads,
        "num_hidden_layers": LAYERS,
        "pad_token_id": 0,
        "position_embedding_type": "alibi",
        "type_vocab_size": 2,
        "vocab_size": tokenizer.get_vocab_size(),
    }
    if kind.architecture.endswith("Classification"):
        config["num_labels"] = 1
    write_json(root / "config.json", config)
    roberta = kind.tokenizer is roberta_tokenizer
    library = transformers.RobertaTokenizerFast if roberta else transformers.BertTokenizerFast
    special = SPECIAL_TOKENS["roberta" if roberta else "bert"]
    fast = library(tokenizer_object=tokenizer, model_max_length=LIMIT, **special)
    fast.save_pretrained(root)
    if name in EMBEDDERS:
        write_modules(root, *(f"sentence_transformers.models.{k}" for k in ("Transformer", "Pooling")))
        pooling = {"word_embedding_dimension": SIZE, "pooling_mode_mean_tokens": True}
        write_json(root / "1_Pooling" / "config.json", pooling)
    return JinaBert(root, kind, tensors, fast)


# ── the reference ──


def linear(case: JinaBert, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, case.tensors[f"{name}.weight"], case.tensors.get(f"{name}.bias"))


def norm(case: JinaBert, name: str, x: torch.Tensor) -> torch.Tensor:
    weight, bias = case.tensors[f"{name}.weight"], case.tensors[f"{name}.bias"]
    return (x - x.mean(-1, keepdim=True)) / (
        x.var(-1, correction=0, keepdim=True) + EPS
    ).sqrt() * weight + bias


def attend(case: JinaBert, name: str, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return softmax(q · k / √d − slope · |i − j|) · v, one head after the other; `mask` is [texts, tokens]."""
    q, k, v = (linear(case, f"{name}.{part}", x) for part in ("query", "key", "value"))
    heads, dim = case.kind.heads, SIZE // case.kind.heads
    places = torch.arange(x.shape[1])
    distance = (places[:, None] - places[None, :]).abs().float()
    mixed = []
    for head in range(heads):
        part = slice(head * dim, (head + 1) * dim)
        logits = q[..., part] @ k[..., part].mT / math.sqrt(dim) - SLOPES[heads][head] * distance
        logits = logits.masked_fill(mask[:, None, :] == 0, float("-inf"))
        mixed.append(logits.softmax(-1) @ v[..., part])
    return torch.cat(mixed, -1)


def feed_forward(case: JinaBert, layer: str, x: torch.Tensor) -> torch.Tensor:
    if case.kind.feed_forward == "original":
        inner = F.gelu(linear(case, f"{layer}.intermediate.dense", x))
        return norm(case, f"{layer}.output.LayerNorm", linear(case, f"{layer}.output.dense", inner) + x)
    both = linear(case, f"{layer}.mlp.gated_layers", x)
    gate = (F.gelu if case.kind.feed_forward == "geglu" else F.relu)(both[..., :INNER])
    down = linear(case, f"{layer}.mlp.wo", gate * both[..., INNER:])
    return norm(case, f"{layer}.mlp.layernorm", down + x)


def hidden(case: JinaBert, inputs: Any) -> torch.Tensor:
    """Return hidden states [texts, tokens, hidden]."""
    table = f"{case.kind.prefix}embeddings"
    types = inputs.get("token_type_ids", torch.zeros_like(inputs["input_ids"]))
    x = case.tensors[f"{table}.word_embeddings.weight"][inputs["input_ids"]]
    x = norm(case, f"{table}.LayerNorm", x + case.tensors[f"{table}.token_type_embeddings.weight"][types])
    for i in range(LAYERS):
        layer = f"{case.kind.prefix}encoder.layer.{i}"
        mixed = attend(case, f"{layer}.attention.self", x, inputs["attention_mask"])
        out = linear(case, f"{layer}.attention.output.dense", mixed)
        x = feed_forward(case, layer, norm(case, f"{layer}.attention.output.LayerNorm", out + x))
    return x


def classified(case: JinaBert, inputs: Any) -> torch.Tensor:
    """Return logits [texts]."""
    first = hidden(case, inputs)[:, 0]
    return linear(case, "classifier", torch.tanh(linear(case, "bert.pooler.dense", first)))[:, 0]


def encoded(case: JinaBert, *texts: list[str]) -> Any:
    return case.tokenizer(*texts, truncation=True, max_length=LIMIT, padding=True, return_tensors="pt")
