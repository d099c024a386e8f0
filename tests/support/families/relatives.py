"""Random checkpoints of architectures that are published with remote code, each written twice.

The published weights and code are not available offline, so one set of random weights is written as the class of the
library saves it, for the reference, and with the names and configuration fields of the published repository.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from support.checkpoints.cross_encoders import SPECIAL_TOKENS, xlm_roberta_tokenizer

LIMIT, SIZE, HEADS, LAYERS = 200, 48, 4, 3
FACTOR, THETA = 8.0, 20_000.0  # of gte-multilingual-reranker-base
Tensors = dict[str, torch.Tensor]
SHAPE: dict[str, Any] = {
    "hidden_size": SIZE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 96,
    "type_vocab_size": 1,
    "pad_token_id": 1,
}


@dataclass(frozen=True)
class Relative:
    """How an architecture is built in the library, and its names in the published repository."""

    model: Callable[..., Any]
    config: Callable[..., Any]
    options: dict[str, Any]  # of the library's configuration
    published: dict[str, Any]  # config.json beyond SHAPE
    rename: Callable[[Tensors], Tensors]  # as the library saves them → as published


def new_names(tensors: Tensors) -> Tensors:
    return {re.sub("^gte[.]", "new.", name): tensor for name, tensor in tensors.items()}


def flash_names(tensors: Tensors) -> Tensors:
    """Rename the tensors of XLM-R to those of jina's implementation, which has fused projections and other modules."""
    layer = re.compile(r"roberta[.]encoder[.]layer[.](\d+)[.](.*)[.](weight|bias)")
    parts = {
        "attention.output.dense": "mixer.out_proj",
        "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "output.LayerNorm": "norm2",
    }
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        match = layer.fullmatch(name)
        if match is None:
            renamed[name.replace("embeddings.LayerNorm", "emb_ln")] = tensor
            continue
        number, part, kind = match.groups()
        if part in parts:
            renamed[f"roberta.encoder.layers.{number}.{parts[part]}.{kind}"] = tensor
        elif part == "attention.self.query":
            fused = [tensors[name.replace("query", other)] for other in ("query", "key", "value")]
            renamed[f"roberta.encoder.layers.{number}.mixer.Wqkv.{kind}"] = torch.cat(fused)
    return renamed


def same(tensors: Tensors) -> Tensors:
    return tensors


FLASH = {
    "architectures": ["XLMRobertaForSequenceClassification"],
    "auto_map": {
        "AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig",
        "AutoModelForSequenceClassification": "modeling_xlm_roberta.XLMRobertaForSequenceClassification",
    },
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": LIMIT + 2,
    "use_flash_attn": True,
    "emb_pooler": None,
}
NEW = {
    "architectures": ["NewForSequenceClassification"],
    "auto_map": {"AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig"},
    "model_type": "new",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "layer_norm_type": "layer_norm",
    "max_position_embeddings": LIMIT,
    "pack_qkv": True,
    "position_embedding_type": "rope",
    "logn_attention_clip1": False,
    "logn_attention_scale": False,
    "rope_theta": THETA,
    "rope_scaling": {"factor": FACTOR, "type": "ntk"},
    "unpad_inputs": False,
    "use_memory_efficient_attention": False,
}
# base · f and all frequencies divided by f^(2 / dim), as transformers configures it
NTK = {"rope_type": "linear", "factor": FACTOR ** (2 * HEADS / SIZE), "rope_theta": THETA * FACTOR}
RELATIVES = {
    "new": Relative(
        transformers.GteForSequenceClassification,
        transformers.GteConfig,
        {"rope_parameters": NTK, "max_position_embeddings": LIMIT, "layer_norm_eps": 1e-12},
        NEW,
        new_names,
    ),
    "new-unscaled": Relative(
        transformers.GteForSequenceClassification,
        transformers.GteConfig,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "max_position_embeddings": LIMIT},
        NEW | {"rope_scaling": None, "rope_theta": 500.0},
        new_names,
    ),
    "xlm-roberta-flash": Relative(
        transformers.XLMRobertaForSequenceClassification,
        transformers.XLMRobertaConfig,
        {"max_position_embeddings": LIMIT + 2, "layer_norm_eps": 1e-5},
        FLASH | {"position_embedding_type": "absolute"},
        flash_names,
    ),
    "xlm-roberta-flash-rotary": Relative(
        transformers.JinaEmbeddingsV3ForSequenceClassification,
        transformers.JinaEmbeddingsV3Config,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}, "layer_norm_eps": 1e-5},
        FLASH | {"position_embedding_type": "rotary", "rotary_emb_base": 300.0},
        same,
    ),
}


def make_relative(root: Path, relative: Relative) -> tuple[Path, Path]:
    """Write the published form and the library's, both with the tokenizer, and return their directories."""
    tokenizer = xlm_roberta_tokenizer()
    shape = SHAPE | {"vocab_size": tokenizer.get_vocab_size()}
    torch.manual_seed(1)
    model = relative.model(relative.config(num_labels=1, **shape, **relative.options)).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.25 if parameter.ndim > 1 else 0.1)
        if "norm" in name.lower() and name.endswith("weight"):
            parameter.data += 1.0
    library, published = root / "library", root / "published"
    model.save_pretrained(library)
    published.mkdir()
    tensors = relative.rename(load_file(library / "model.safetensors"))
    save_file(tensors, published / "model.safetensors")
    config = shape | relative.published | {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    (published / "config.json").write_text(json.dumps(config))
    for directory in (library, published):
        transformers.XLMRobertaTokenizerFast(
            tokenizer_object=tokenizer, model_max_length=LIMIT, **SPECIAL_TOKENS["xlm-roberta"]
        ).save_pretrained(directory)
    return published, library
