"""Random encoders in the layouts of published embedding models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from support.checkpoints.cache import cached
from support.checkpoints.cross_encoders import SPECIAL_TOKENS, bert_tokenizer, xlm_roberta_tokenizer

SHAPE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def roughen(model: torch.nn.Module) -> None:
    """Make weights so uneven that wrong code does not agree by chance."""
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.25 if parameter.ndim > 1 else 0.1)
        if "LayerNorm.weight" in name:
            parameter.data += 1.0


def write_modules(directory: Path, *kinds: str) -> None:
    """Write modules.json with the first module at the top level and the others in folders."""
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind.rsplit('.', 1)[-1]}" if i else "", "type": kind}
        for i, kind in enumerate(kinds)
    ]
    write_json(directory / "modules.json", modules)


@cached
def make_encoder(directory: Path, *, normalize: bool = True, prompts: dict[str, Any] | None = None) -> Path:
    """Write a random BertModel with mean pooling; `prompts` are the keys of config_sentence_transformers.json."""
    tokenizer = bert_tokenizer()
    torch.manual_seed(7)
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=128, pad_token_id=0, **SHAPE
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    roughen(model)
    model.save_pretrained(directory)
    transformers.BertTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=128, **SPECIAL_TOKENS["bert"]
    ).save_pretrained(directory)
    kinds = ["Transformer", "Pooling"] + (["Normalize"] if normalize else [])
    write_modules(directory, *(f"sentence_transformers.models.{kind}" for kind in kinds))
    pooling = {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True}
    write_json(directory / "1_Pooling" / "config.json", pooling)
    if prompts:
        write_json(directory / "config_sentence_transformers.json", prompts)
    return directory


@cached
def make_bge_m3(directory: Path) -> Path:
    """Write a random BAAI/bge-m3: XLM-R, cls pooling, and the two linear layers in separate files."""
    tokenizer = xlm_roberta_tokenizer()
    torch.manual_seed(9)
    config = transformers.XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=130,
        pad_token_id=1,
        type_vocab_size=1,
        **SHAPE,
    )
    model = transformers.XLMRobertaModel(config).eval()  # with a pooler, as in the published file
    roughen(model)
    model.save_pretrained(directory)
    for name, outputs in (("sparse", 1), ("colbert", 48)):
        linear = torch.nn.Linear(48, outputs)
        torch.save(linear.state_dict(), directory / f"{name}_linear.pt")
    transformers.XLMRobertaTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=128, **SPECIAL_TOKENS["xlm-roberta"]
    ).save_pretrained(directory)
    write_modules(
        directory, *(f"sentence_transformers.models.{k}" for k in ("Transformer", "Pooling", "Normalize"))
    )
    pooling = {
        "word_embedding_dimension": 48,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
    }
    write_json(directory / "1_Pooling" / "config.json", pooling)
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": False})
    return directory


@cached
def make_splade(directory: Path, *, strategy: str = "max", function: str = "relu", tied: bool = True) -> Path:
    """Write a random SPLADE model in the layout of sentence-transformers' SparseEncoder."""
    tokenizer = bert_tokenizer()
    torch.manual_seed(10)
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=128,
        pad_token_id=0,
        tie_word_embeddings=tied,
        **SHAPE,
    )
    model = transformers.BertForMaskedLM(config).eval()
    roughen(model)
    model.save_pretrained(directory)
    transformers.BertTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=128, **SPECIAL_TOKENS["bert"]
    ).save_pretrained(directory)
    kind = "sentence_transformers.sparse_encoder.models"
    write_modules(directory, f"{kind}.MLMTransformer", f"{kind}.SpladePooling")
    pooling = {
        "pooling_strategy": strategy,
        "activation_function": function,
        "word_embedding_dimension": None,
    }
    write_json(directory / "1_SpladePooling" / "config.json", pooling)
    write_json(
        directory / "config_sentence_transformers.json", {"model_type": "SparseEncoder", "prompts": {}}
    )
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": False})
    return directory
