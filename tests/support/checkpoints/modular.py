"""Random rerankers with a head of sentence-transformers modules, saved by that library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

from support.checkpoints.cross_encoders import FAMILIES, SPECIAL_TOKENS

LIMIT, SIZE = 200, 48
MODELS = {"bert": transformers.BertModel, "modernbert": transformers.ModernBertModel}


def make_encoder(directory: Path, family: str) -> Transformer:
    """Write a random encoder and its tokenizer, and load them with sentence-transformers."""
    config_class, _, build_tokenizer, tokenizer_class, _ = FAMILIES[family]
    tokenizer = build_tokenizer()
    torch.manual_seed(3)
    config = config_class(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=SIZE,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    model = shaken(MODELS[family](config))
    model.save_pretrained(directory)
    fast = tokenizer_class(tokenizer_object=tokenizer, model_max_length=LIMIT, **SPECIAL_TOKENS[family])
    fast.save_pretrained(directory)
    return Transformer(str(directory), transformer_task="feature-extraction")


def shaken(module: Any) -> Any:
    """Make weights so uneven that wrong code does not agree by chance."""
    for name, parameter in module.named_parameters():
        torch.nn.init.normal_(parameter, std=0.25 if parameter.ndim > 1 else 0.1)
        if name.lower().endswith("norm.weight"):
            parameter.data += 1.0
    return module.eval()


def make_reranker(
    tmp_path: Path, family: str = "modernbert", pooling: Any = "cls", activation: Any = None
) -> tuple[Path, CrossEncoder]:
    """Write the ettin layout: encoder, pooling, Dense without bias and GELU, LayerNorm, Dense to one."""
    modules = [
        make_encoder(tmp_path / "encoder", family),
        Pooling(SIZE, pooling_mode=pooling),
        Dense(SIZE, SIZE, bias=False, activation_function=torch.nn.GELU()),
        LayerNorm(SIZE),
        Dense(SIZE, 1, activation_function=torch.nn.Identity(), module_output_name="scores"),
    ]
    for module in modules[2:]:
        shaken(module)
    model = CrossEncoder(modules=modules, activation_fn=activation or torch.nn.Identity(), device="cpu")
    model.save_pretrained(str(tmp_path / "reranker"))
    return tmp_path / "reranker", model
