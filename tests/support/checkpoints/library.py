"""Random checkpoints of further architectures of transformers, served natively or through it (`sie-server[compat]`).

Each is written as a cross-encoder, or as an embedding model with modules.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from support.checkpoints.cache import cached
from support.checkpoints.cross_encoders import SPECIAL_TOKENS, bert_tokenizer, xlm_roberta_tokenizer
from support.checkpoints.encoders import write_json, write_modules

LIMIT = 100  # not a multiple of 16, so padded rows exceed the position tables
SHAPE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
DEBERTA = {  # as mxbai-rerank-v1
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_buckets": 16,
    "max_relative_positions": -1,
    "pooler_hidden_size": 48,
    "pooler_hidden_act": "gelu",
}
# family → prefix of the library's class names, configuration beyond the common shape
LIBRARY: dict[str, tuple[str, dict[str, Any]]] = {
    "albert": (  # two groups of layers that share their weights, each group of two
        "Albert",
        {"embedding_size": 24, "num_hidden_layers": 3, "num_hidden_groups": 2, "inner_group_num": 2},
    ),
    "camembert": ("Camembert", {"type_vocab_size": 1}),  # positions start after the padding token's id
    "convbert": ("ConvBert", {"type_vocab_size": 2, "embedding_size": 48}),  # padding changes its states
    "deberta-v2": ("DebertaV2", DEBERTA),
    "distilbert": ("DistilBert", {}),
    "electra": ("Electra", {"type_vocab_size": 2, "embedding_size": 24}),
    "mpnet": ("MPNet", {}),
}
# families with makers of their own, for the classes of their training heads
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {}),
    "modernbert": ("ModernBert", {"local_attention": 16}),
    "roberta": ("Roberta", {"type_vocab_size": 1}),
    "xlm-roberta": ("XLMRoberta", {"type_vocab_size": 1}),
}
COMPAT = ("convbert", "deberta-v2")  # run by transformers
NATIVE = tuple(sorted(set(LIBRARY) - set(COMPAT)))
OFFSET = ("camembert", "mpnet", "roberta", "xlm-roberta")


def build(family: str, suffix: str, **more: Any) -> Any:
    """Return a random model of the library's class with this suffix, for example `ForMaskedLM`."""
    prefix, own = (LIBRARY | OTHERS)[family]
    roberta = family in OFFSET
    torch.manual_seed(2)
    config = getattr(transformers, f"{prefix}Config")(
        vocab_size=tokenizer_of(family).get_vocab_size(),
        max_position_embeddings=LIMIT + (2 if roberta else 0),
        pad_token_id=1 if roberta else 0,
        **{**SHAPE, **own, **more},
    )
    return roughened(getattr(transformers, prefix + suffix)(config).eval())


def roughened(model: Any) -> Any:
    """Set weights so uneven that wrong code does not agree by chance."""
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.25 if parameter.ndim > 1 else 0.1)
        if "norm" in name.lower() and name.endswith("weight"):
            parameter.data += 1.0
    return model


def tokenizer_of(family: str) -> Any:
    return xlm_roberta_tokenizer() if family in OFFSET else bert_tokenizer()


def save_tokenizer(directory: Path, family: str) -> None:
    roberta = family in OFFSET
    tokenizer_class = transformers.XLMRobertaTokenizerFast if roberta else transformers.BertTokenizerFast
    special = SPECIAL_TOKENS["roberta" if roberta else "bert"]
    one_type = family in ("distilbert", "modernbert")
    inputs = {"model_input_names": ["input_ids", "attention_mask"]} if one_type else {}
    tokenizer_class(
        tokenizer_object=tokenizer_of(family), model_max_length=LIMIT, **special, **inputs
    ).save_pretrained(directory)


@cached
def make_library_classifier(directory: Path, family: str, labels: int = 1) -> Path:
    """Write a random sequence classifier."""
    names = {"id2label": {i: f"label {i}" for i in range(labels)}} if labels > 1 else {}
    build(family, "ForSequenceClassification", num_labels=labels, **names).save_pretrained(directory)
    save_tokenizer(directory, family)
    return directory


@cached
def make_library_splade(directory: Path, family: str, strategy: str = "max", **more: Any) -> Path:
    """Write a random masked language model in the layout of sentence-transformers' SparseEncoder."""
    build(family, "ForMaskedLM", **more).save_pretrained(directory)
    save_tokenizer(directory, family)
    kind = "sentence_transformers.sparse_encoder.models"
    write_modules(directory, f"{kind}.MLMTransformer", f"{kind}.SpladePooling")
    pooling = {"pooling_strategy": strategy, "activation_function": "log1p_relu"}
    write_json(directory / "1_SpladePooling" / "config.json", pooling)
    write_json(
        directory / "config_sentence_transformers.json", {"model_type": "SparseEncoder", "prompts": {}}
    )
    return directory


@cached
def make_library_colbert(directory: Path, family: str) -> Path:
    """Write a random ColBERT in PyLate's layout, without a skip list."""
    build(family, "Model").save_pretrained(directory)
    save_tokenizer(directory, family)
    modules = ("sentence_transformers.models.Transformer", "pylate.models.Dense.Dense")
    write_modules(directory, *modules)
    dense = {
        "in_features": 48,
        "out_features": 16,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    write_json(directory / "1_Dense" / "config.json", dense)
    save_file({"linear.weight": torch.randn(16, 48) * 0.3}, directory / "1_Dense" / "model.safetensors")
    settings = {"query_prefix": "", "document_prefix": "", "query_length": 16, "document_length": 60}
    write_json(
        directory / "config_sentence_transformers.json",
        settings | {"skiplist_words": [], "do_query_expansion": True, "attend_to_expansion_tokens": False},
    )
    return directory


@cached
def make_library_embedder(
    directory: Path, family: str, suffix: str = "Model", pooling: str | list[str] = "mean"
) -> Path:
    """Write a random embedding model; `suffix` is that of the class whose weights are saved, head included."""
    build(family, suffix).save_pretrained(directory)
    save_tokenizer(directory, family)
    write_modules(directory, *(f"sentence_transformers.models.{k}" for k in ("Transformer", "Pooling")))
    write_json(
        directory / "1_Pooling" / "config.json", {"word_embedding_dimension": 48, "pooling_mode": pooling}
    )
    return directory
