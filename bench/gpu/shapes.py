"""The models that are measured: real shapes, random weights, small vocabularies.

The speed of a transformer does not depend on the values of its weights. The embedding table costs memory, not time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from bench.workload import EMBEDDED, spread_weights, unigram_tokenizer

Kind = Literal["bert", "xlm-roberta", "modernbert", "qwen3"]


@dataclass(frozen=True)
class GPUShape:
    """A cross-encoder. `published` are pairs/s of sentence-transformers on one H100 (docs/performance.md)."""

    name: str
    kind: Kind
    layers: int
    width: int
    heads: int
    feed_forward: int
    key_heads: int = 0  # 0: as many as heads
    head_width: int = 0  # 0: width / heads
    median_words: float = 69.5  # of the documents, so that pairs have a median of about 97 tokens
    published: float | None = None

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The inputs and outputs of the products of a layer."""
        head = self.head_width or self.width // self.heads
        queries, keys = head * self.heads, head * (self.key_heads or self.heads)
        gates = 2 if self.kind in ("modernbert", "qwen3") else 1
        return [
            (self.width, queries + 2 * keys),
            (queries, self.width),
            (self.width, gates * self.feed_forward),
            (self.feed_forward, self.width),
        ]

    def flops(self, lengths: list[int]) -> float:
        """Return the floating-point operations of products and attention for pairs of these lengths."""
        head = self.head_width or self.width // self.heads
        products = sum(2 * inputs * outputs for inputs, outputs in self.sizes) * sum(lengths)
        share = 2 if self.kind == "qwen3" else 4  # causal attention computes half
        return float(self.layers * (products + share * head * self.heads * sum(n * n for n in lengths)))

    @property
    def tiny(self) -> GPUShape:
        """A shape of the same kind that runs on any CPU in milliseconds."""
        keys, head = (2, 16) if self.kind == "qwen3" else (0, 0)
        return replace(self, layers=2, width=64, heads=4, feed_forward=96, key_heads=keys, head_width=head)


SHAPES = (
    GPUShape("MiniLM-L6", "bert", 6, 384, 12, 1536, published=3817),
    GPUShape("XLM-R base", "xlm-roberta", 12, 768, 12, 3072, median_words=45.5, published=2858),
    GPUShape("XLM-R large", "xlm-roberta", 24, 1024, 16, 4096, median_words=45.5, published=1569),
    GPUShape("gte-modernbert", "modernbert", 22, 768, 12, 1152, published=1418),
    GPUShape("Qwen3-0.6B", "qwen3", 28, 1024, 16, 3072, key_heads=8, head_width=128),
)


def write_checkpoint(
    shape: GPUShape, directory: Path, device: str, dtype: torch.dtype = torch.bfloat16
) -> Path:
    """Write a cross-encoder; its weights are made on the device, which is faster."""
    import transformers

    pad, rows = _write_tokenizer(shape, directory)
    config = _config(shape, rows, pad)
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    spread_weights(model)
    model.eval().to(dtype).save_pretrained(directory)
    if shape.kind == "qwen3":  # a pair without a prompt, as sentence-transformers reads such a checkpoint
        (directory / "sie_reranker.yaml").write_text("template: none\n", encoding="utf-8")
    return directory


def _config(shape: GPUShape, rows: int, pad: int) -> Any:
    import transformers

    classes = {
        "bert": (transformers.BertConfig, {"type_vocab_size": 2, "max_position_embeddings": 512}),
        "xlm-roberta": (
            transformers.XLMRobertaConfig,
            {"type_vocab_size": 1, "max_position_embeddings": 514},
        ),
        "modernbert": (transformers.ModernBertConfig, {"max_position_embeddings": 8192}),
        "qwen3": (transformers.Qwen3Config, {"max_position_embeddings": 8192}),
    }
    kind, fields = classes[shape.kind]
    if shape.key_heads:
        fields |= {"num_key_value_heads": shape.key_heads, "head_dim": shape.head_width}
    if shape.kind in ("modernbert", "qwen3"):
        fields |= {f"{name}_token_id": pad for name in ("bos", "eos", "cls", "sep")}
    return kind(
        vocab_size=rows,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.feed_forward,
        pad_token_id=pad,
        num_labels=1,
        **fields,
    )


def _write_tokenizer(shape: GPUShape, directory: Path) -> tuple[int, int]:
    """Write a tokenizer; return the id of its padding and its size."""
    from tokenizers import Tokenizer
    from transformers import BertTokenizerFast, PreTrainedTokenizerFast, XLMRobertaTokenizerFast

    if shape.kind == "xlm-roberta":
        tokenizer = unigram_tokenizer()
        XLMRobertaTokenizerFast(tokenizer_object=tokenizer, model_max_length=512).save_pretrained(directory)
        return tokenizer.token_to_id("<pad>"), tokenizer.get_vocab_size()
    tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    fast = BertTokenizerFast if shape.kind == "bert" else PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, model_max_length=512, **special).save_pretrained(directory)
    return tokenizer.token_to_id("[PAD]"), tokenizer.get_vocab_size()
