"""Random listwise rerankers with the configuration fields of jina-reranker-v3 and v3.5, as on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken

from support.checkpoints.cache import cached
from support.checkpoints.decoders import byte_level_tokenizer

# windows far shorter than any prompt, alternating with full attention; the last layer is full, as in v3.5
HYBRID = {
    "use_sliding_window": True,
    "sliding_window": 24,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
}
RELEASES: dict[str, dict[str, Any]] = {"v3": {"use_sliding_window": False}, "v3.5": HYBRID}


@cached
def make_listwise(
    directory: Path,
    release: str = "v3",
    *,
    positions: int = 16384,
    model_max_length: int = 4096,
    **fields: Any,
) -> Path:
    """Write a random listwise reranker of that release to `directory`."""
    tokenizer = byte_level_tokenizer()
    marks = ["<|score_token|>", "<|embed_token|>", "<|rerank_token|>"]
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    shape: dict[str, Any] = {
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 64,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "max_position_embeddings": positions,
    }
    config = transformers.Qwen3Config(
        vocab_size=tokenizer.get_vocab_size() + 24, **(shape | RELEASES[release] | fields)
    )
    torch.manual_seed(3)
    model = transformers.Qwen3Model(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.1)
        if name.endswith("norm.weight"):
            parameter.data += 1.0
    weights = {f"model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    weights["projector.0.weight"] = torch.randn(24, 48) * 0.3  # hidden // 2, hidden
    weights["projector.2.weight"] = torch.randn(512, 24) * 0.3
    directory.mkdir(parents=True, exist_ok=True)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    named = {"architectures": ["JinaForRanking"], "auto_map": {"AutoModel": "modeling.JinaForRanking"}}
    (directory / "config.json").write_text(json.dumps(config.to_dict() | named))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", model_max_length=model_max_length
    ).save_pretrained(directory)
    return directory
