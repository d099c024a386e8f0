"""Random ColBERT checkpoints in both layouts, written as their libraries write them."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, pre_tokenizers, processors

from support.checkpoints.cache import cached
from support.checkpoints.cross_encoders import FAMILIES, SPECIAL_TOKENS

BASES = {
    "bert": transformers.BertModel,
    "lfm2": transformers.Lfm2Model,
    "modernbert": transformers.ModernBertModel,
    "xlm-roberta": transformers.XLMRobertaModel,
}
# jina-colbert-v2: rotary XLM-R with remote code; its weights have the names of JinaEmbeddingsV3Model
FLASH_CONFIG = {
    "auto_map": {
        "AutoConfig": "jinaai/xlm-roberta-flash-implementation--configuration_xlm_roberta.XLMRobertaFlashConfig"
    },
    "model_type": "xlm-roberta",
    "position_embedding_type": "rotary",
    "rotary_emb_base": 300.0,
    "use_flash_attn": True,
    "emb_pooler": None,
}
LFM2_TOKENS = {"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
STANFORD_MARKERS = ["[unused0]", "[unused1]"]


@cached
def make_pylate(
    directory: Path,
    family: str,
    *,
    dims: tuple[int, ...] = (24,),
    hidden: int = 48,
    activation: str = "linear.Identity",
    lower_case: bool = False,
    **settings: Any,
) -> Path:
    """Write Transformer and Dense modules with `modules.json`, as `pylate.models.ColBERT.save_pretrained` does."""
    tokenizer = _tokenizer(family)
    tokenizer.add_tokens(["[Q] ", "[D] "])
    backbone = _random_backbone(family, tokenizer, hidden)
    backbone.save_pretrained(directory)
    _save_tokenizer(directory, family, tokenizer)
    modules = [_module("", 0, "sentence_transformers.models.Transformer")]
    width = backbone.config.hidden_size
    for i, dim in enumerate(dims, 1):
        folder = directory / f"{i}_Dense"
        folder.mkdir()
        config = {
            "in_features": width,
            "out_features": dim,
            "bias": i > 1,  # PyLate's own layer has none; a second one shows that a bias is read
            "activation_function": f"torch.nn.modules.{activation if i < len(dims) else 'linear.Identity'}",
            "use_residual": i > 1,
        }
        (folder / "config.json").write_text(json.dumps(config))
        tensors = {"linear.weight": torch.randn(dim, width) * 0.3}
        if i > 1:
            tensors |= {
                "linear.bias": torch.randn(dim) * 0.3,
                "residual.weight": torch.randn(dim, width) * 0.3,
            }
        save_file(tensors, folder / "model.safetensors")
        modules.append(_module(folder.name, i, "pylate.models.Dense.Dense"))
        width = dim
    (directory / "modules.json").write_text(json.dumps(modules))
    limits = {"max_seq_length": 96, "do_lower_case": lower_case}
    (directory / "sentence_bert_config.json").write_text(json.dumps(limits))
    known = {"model_type": "ColBERT", "query_prefix": "[Q] ", "document_prefix": "[D] "}
    config = known | {"query_length": 16, "document_length": 60} | settings
    (directory / "config_sentence_transformers.json").write_text(json.dumps(config))
    return directory


@cached
def make_stanford(directory: Path, family: str, metadata: dict[str, Any] | None, *, hidden: int = 48) -> Path:
    """Write backbone and `linear.weight` to one file, and `artifact.metadata` next to it unless it is None."""
    tokenizer = _tokenizer(family)
    tokenizer.add_special_tokens([AddedToken(m, normalized=False, special=True) for m in STANFORD_MARKERS])
    backbone = _random_backbone(family, tokenizer, hidden)
    backbone.config.architectures = ["HF_ColBERT"]
    directory.mkdir(parents=True, exist_ok=True)
    backbone.config.save_pretrained(directory)
    prefix = backbone.base_model_prefix
    dim = (metadata or {}).get("dim", 128)
    tensors = {f"{prefix}.{name}": tensor for name, tensor in backbone.state_dict().items()}
    tensors["linear.weight"] = torch.randn(dim, backbone.config.hidden_size) * 0.3
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    _save_tokenizer(directory, family, tokenizer)
    if metadata is not None:
        (directory / "artifact.metadata").write_text(json.dumps(metadata))
    return directory


@cached
def make_jina(directory: Path, metadata: dict[str, Any]) -> Path:
    """Write jina-colbert-v2: Stanford's layout with its own markers, and in `library` the form that transformers saves."""
    tokenizer = _tokenizer("xlm-roberta")
    markers = [metadata["query_token_id"], metadata["doc_token_id"]]
    tokenizer.add_special_tokens([AddedToken(m, normalized=False, special=True) for m in markers])
    shape = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    shape |= {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 98, "pad_token_id": 1}
    shape |= {"type_vocab_size": 1}
    rope = {"rope_type": "default", "rope_theta": FLASH_CONFIG["rotary_emb_base"]}
    torch.manual_seed(3)
    config = transformers.JinaEmbeddingsV3Config(layer_norm_eps=1e-5, rope_parameters=rope, **shape)
    backbone = _roughened(transformers.JinaEmbeddingsV3Model(config))
    backbone.save_pretrained(directory / "library")
    published = load_file(directory / "library" / "model.safetensors")
    tensors = {f"roberta.{name}": tensor for name, tensor in published.items()}
    tensors["linear.weight"] = torch.randn(metadata["dim"], 48) * 0.3
    save_file(tensors, directory / "model.safetensors")
    own = (
        shape | FLASH_CONFIG | {"architectures": ["HF_ColBERT"], "layer_norm_eps": 1e-5, "hidden_act": "gelu"}
    )
    (directory / "config.json").write_text(json.dumps(own))
    (directory / "artifact.metadata").write_text(json.dumps(metadata))
    _save_tokenizer(directory, "xlm-roberta", tokenizer)
    return directory


def _tokenizer(family: str) -> Tokenizer:
    """Return the tokenizer with a token for every punctuation mark, as real vocabularies have."""
    tokenizer: Tokenizer = _lfm2_tokenizer() if family == "lfm2" else FAMILIES[family][2]()
    if family == "xlm-roberta":  # as the real file has it, and as transformers rebuilds it
        split = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in string.punctuation])
    return tokenizer


def _module(folder: str, index: int, kind: str) -> dict[str, Any]:
    return {"idx": index, "name": str(index), "path": folder, "type": kind}


def _random_backbone(family: str, tokenizer: Tokenizer, hidden: int) -> transformers.PreTrainedModel:
    torch.manual_seed(3)
    if family == "lfm2":
        return _random_lfm2(tokenizer, hidden)
    config_class, _, _, _, extra = FAMILIES[family]
    model = BASES[family](
        config_class(
            vocab_size=tokenizer.get_vocab_size(),
            max_position_embeddings=96 + extra,
            pad_token_id=tokenizer.token_to_id("<pad>" if family == "xlm-roberta" else "[PAD]"),
            hidden_size=hidden,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=2 * hidden,
            # documents are longer than the window, queries are not, as in the real models
            **(
                {"local_attention": 48}
                if family == "modernbert"
                else {"type_vocab_size": 2 if family == "bert" else 1}
            ),
        )
    )
    return _roughened(model)


def _roughened(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    for name, parameter in model.named_parameters():  # flat initialisation would let wrong code agree too
        torch.nn.init.normal_(parameter, std=0.25 if parameter.ndim > 1 else 0.1)
        if "norm" in name.lower() and name.endswith("weight"):
            parameter.data += 1.0
    return model.eval()


def _save_tokenizer(directory: Path, family: str, tokenizer: Tokenizer) -> None:
    if family == "lfm2":
        kind, special = transformers.PreTrainedTokenizerFast, LFM2_TOKENS
    else:
        kind, special = FAMILIES[family][3], SPECIAL_TOKENS[family]
    kind(tokenizer_object=tokenizer, model_max_length=96, **special).save_pretrained(directory)


def _lfm2_tokenizer() -> Tokenizer:
    """Return a byte-level tokenizer without a mask token that adds a token to the start of a text only."""
    tokenizer = FAMILIES["modernbert"][2]()
    tokenizer.add_special_tokens(list(LFM2_TOKENS.values()))
    start = LFM2_TOKENS["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A",
        pair=f"{start} $A {start} $B",
        special_tokens=[(start, tokenizer.token_to_id(start))],
    )
    return tokenizer


def _random_lfm2(tokenizer: Tokenizer, hidden: int) -> transformers.PreTrainedModel:
    config = transformers.Lfm2Config(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=96,
        pad_token_id=tokenizer.token_to_id(LFM2_TOKENS["pad_token"]),
        hidden_size=hidden,
        num_hidden_layers=5,
        layer_types=["conv", "conv", "full_attention", "conv", "full_attention"],
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * hidden,
        block_multiple_of=16,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )
    return _roughened(transformers.Lfm2Model(config)).eval()
