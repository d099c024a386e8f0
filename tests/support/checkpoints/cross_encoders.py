"""Random checkpoints with the real architectures and configuration fields, in the layout that users have on disk.

Tokenizers are trained here on a few sentences with the real models, pre-tokenisers and post-processors of each family.
"""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from support.checkpoints.cache import cached

_SENTENCES = """
machine learning learns patterns from data while rain falls tomorrow over the quiet harbour and nobody reads
contracts about indemnification unless lawyers argue why proteins fold when heated in water or how stars burn
hydrogen into helium for billions of years before they collapse naïve café Zürich 東京 data-driven 3.14 e-mail
"""
WORDS = _SENTENCES.split()


def random_text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def _corpus() -> list[str]:
    rng = random.Random(5)
    return [random_text(rng, 30) for _ in range(200)]


def bert_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        _corpus(), trainers.WordPieceTrainer(vocab_size=400, special_tokens=special)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def roberta_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _corpus(), trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def xlm_roberta_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    # as in the published files of the XLM-R rerankers
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def modernbert_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _corpus(), trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def _modernbert(**config: Any) -> tuple[Any, Any, Any, Any, int]:
    return (
        partial(transformers.ModernBertConfig, local_attention=16, **config),
        transformers.ModernBertForSequenceClassification,
        modernbert_tokenizer,
        # as the published tokenizers say: no token types
        partial(transformers.PreTrainedTokenizerFast, model_input_names=["input_ids", "attention_mask"]),
        0,
    )


# family → config class, model class, tokenizer, transformers' tokenizer class, position rows beyond the length
FAMILIES: dict[str, tuple[Any, Any, Any, Any, int]] = {
    "bert": (
        transformers.BertConfig,
        transformers.BertForSequenceClassification,
        bert_tokenizer,
        transformers.BertTokenizerFast,
        0,
    ),
    "roberta": (
        transformers.RobertaConfig,
        transformers.RobertaForSequenceClassification,
        roberta_tokenizer,
        transformers.RobertaTokenizerFast,
        2,
    ),
    "xlm-roberta": (
        transformers.XLMRobertaConfig,
        transformers.XLMRobertaForSequenceClassification,
        xlm_roberta_tokenizer,
        transformers.XLMRobertaTokenizerFast,
        2,
    ),
    "modernbert": _modernbert(),
    "modernbert-mean": _modernbert(
        classifier_pooling="mean",
        classifier_bias=True,
        norm_bias=True,
        attention_bias=True,
        mlp_bias=True,
    ),
}
SPECIAL_TOKENS = {
    "bert": {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    },
    "roberta": {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "mask_token": "<mask>",
    },
}
SPECIAL_TOKENS["xlm-roberta"] = SPECIAL_TOKENS["roberta"]
SPECIAL_TOKENS["modernbert"] = SPECIAL_TOKENS["modernbert-mean"] = SPECIAL_TOKENS["bert"]


@cached
def make_cross_encoder(
    directory: Path, family: str, *, max_length: int = 128, seed: int = 0, **config: Any
) -> Path:
    """Write a random cross-encoder of `family` to `directory`, as `save_pretrained` writes it."""
    config_class, model_class, build_tokenizer, tokenizer_class, extra_positions = FAMILIES[family]
    tokenizer = build_tokenizer()
    shape: dict[str, Any] = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "type_vocab_size": 2 if family == "bert" else 1,
        "num_labels": 1,
    }
    shape.update(config)
    torch.manual_seed(seed)
    model = model_class(
        config_class(
            vocab_size=tokenizer.get_vocab_size(),
            max_position_embeddings=max_length + extra_positions,
            pad_token_id=tokenizer.token_to_id(SPECIAL_TOKENS[family]["pad_token"]),
            **shape,
        )
    )
    for (
        parameter
    ) in model.parameters():  # the default initialisation is so flat that wrong code would agree too
        torch.nn.init.normal_(parameter, std=0.25 if parameter.ndim > 1 else 0.1)
    for name, parameter in model.named_parameters():
        if name.lower().endswith("norm.weight"):
            parameter.data += 1.0
    directory.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(directory)
    fast = tokenizer_class(tokenizer_object=tokenizer, model_max_length=max_length, **SPECIAL_TOKENS[family])
    fast.save_pretrained(directory)
    return directory
