"""Inputs of the benchmarks: English texts of natural lengths, and checkpoints of known shapes with random weights.

Speed depends on the shapes of the weights and on the lengths of the texts, not on the values of the weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = ROOT / "packages/sie-server/src/sie_server/embedded/mini-en"
CORPUS = ROOT / "examples/demo/corpus.jsonl"
QUERY = "why do massive stars explode at the end of their lives"
UNIGRAM_VOCABULARY = 4_000


@dataclass(frozen=True)
class Shape:
    """A cross-encoder to measure, and its expected speed relative to sentence-transformers on an AMX CPU."""

    name: str
    family: Literal["bert", "xlm-roberta"]
    layers: int
    width: int
    heads: int
    feed_forward: int
    positions: int
    median_words: float  # of the documents, so that pairs have a median of about 97 tokens
    over_default: float
    over_best: float

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The inputs and outputs of the products of a layer."""
        h, f = self.width, self.feed_forward
        return [(h, 3 * h), (h, h), (h, f), (f, h)]

    def flops(self, lengths: list[int]) -> float:
        """Return the floating-point operations of products and attention for pairs of these lengths."""
        h, f, tokens = self.width, self.feed_forward, sum(lengths)
        products = 2 * self.layers * (4 * h * h + 2 * h * f) * tokens
        return products + 4 * self.layers * h * sum(n * n for n in lengths)


MINILM = Shape("MiniLM-L6", "bert", 6, 384, 12, 1536, 512, 69.5, 4.5, 1.4)
XLM_R_BASE = Shape("XLM-R base", "xlm-roberta", 12, 768, 12, 3072, 514, 45.5, 5.0, 1.3)
TOY = Shape("toy", "bert", 2, 32, 2, 64, 512, 60.5, 0, 0)
SHAPES = {"minilm": MINILM, "xlm-r": XLM_R_BASE}


@cache
def corpus_words() -> tuple[str, ...]:
    """Return the words of the demo's texts in order."""
    lines = CORPUS.read_text(encoding="utf-8").splitlines()
    return tuple(word for line in lines for word in json.loads(line)["text"].split())


def natural_texts(count: int, median_words: float = 60.0, seed: int = 0) -> list[str]:
    """Return English texts of lognormal length (σ 0.5, longest 2.7 × the median), in random order."""
    rng = np.random.default_rng(seed)
    words = corpus_words()
    normal = NormalDist(sigma=0.5)
    spread = [normal.inv_cdf((i + 0.5) / count) for i in range(count)]
    lengths = [round(median_words * min(float(np.exp(s)), 2.7)) for s in spread]
    rng.shuffle(lengths)
    starts = [int(rng.integers(0, len(words) - n)) if n < len(words) else 0 for n in lengths]
    return [" ".join(words[s : s + n]) for s, n in zip(starts, lengths, strict=True)]


def plain_texts(count: int, words: int, seed: int = 0) -> list[str]:
    """Return English texts of equal length."""
    known = corpus_words()
    starts = np.random.default_rng(seed).integers(0, len(known) - words, count)
    return [" ".join(known[s : s + words]) for s in starts]


def write_checkpoint(shape: Shape, directory: Path, seed: int = 0) -> Path:
    """Write a cross-encoder of `shape` with `save_pretrained`, so that all contenders can load it."""
    import torch
    import transformers

    config_class, model_class = {
        "bert": (transformers.BertConfig, transformers.BertForSequenceClassification),
        "xlm-roberta": (transformers.XLMRobertaConfig, transformers.XLMRobertaForSequenceClassification),
    }[shape.family]
    tokenizer = write_tokenizer(shape, directory)
    torch.manual_seed(seed)
    model = model_class(
        config_class(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.feed_forward,
            max_position_embeddings=shape.positions,
            type_vocab_size=2 if shape.family == "bert" else 1,
            pad_token_id=tokenizer.token_to_id("[PAD]" if shape.family == "bert" else "<pad>"),
            num_labels=1,
        )
    )
    spread_weights(model)
    model.eval().save_pretrained(directory)
    return directory


def spread_weights(model: Any) -> None:
    """Set random weights that keep the scale of their input; with the usual ones all scores are nearly equal."""
    import torch

    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            gain = 1.0
            if name in ("classifier.weight", "classifier.out_proj.weight"):
                gain = 8.0  # spreads out the logits
            elif ".query." in name or ".key." in name:
                gain = 2.0
            torch.nn.init.normal_(parameter, std=gain * parameter.shape[1] ** -0.5)
        elif not name.endswith("LayerNorm.weight"):
            torch.nn.init.normal_(parameter, std=0.02)


def write_tokenizer(shape: Shape, directory: Path) -> Tokenizer:
    """Write the tokenizer of the family: the embedded model's WordPiece, or a Unigram trained on the corpus."""
    from tokenizers import Tokenizer
    from transformers import BertTokenizerFast, XLMRobertaTokenizerFast

    if shape.family == "bert":
        tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
        special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
        fast: Any = BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special)
    else:
        tokenizer = unigram_tokenizer()
        fast = XLMRobertaTokenizerFast(tokenizer_object=tokenizer, model_max_length=512)
    fast.save_pretrained(directory)
    return tokenizer


def unigram_tokenizer() -> Tokenizer:
    """Train a tokenizer of XLM-R's kind with a small vocabulary; the real 250,002 entries need 768 MB in fp32."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=UNIGRAM_VOCABULARY, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(_chunks(corpus_words(), 50), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def _chunks(words: tuple[str, ...], size: int) -> Iterator[str]:
    for start in range(0, len(words), size):
        yield " ".join(words[start : start + size])
