"""Write FlagEmbedding's results for two small layerwise rerankers, for tests/parity/test_layerwise.py.

For these models, FlagEmbedding 1.4.2 requires transformers before 4.47, which is older than the version that the tests
use, so it needs a separate environment (`pip install FlagEmbedding==1.4.2 transformers==4.46.3`). Both steps are only
needed to regenerate the committed files:

    python scripts/layerwise_golden.py make     # writes the checkpoints, in the project's own environment with
                                                # this repository's `tests` on PYTHONPATH
    python scripts/layerwise_golden.py score    # writes golden.json into each, in FlagEmbedding's environment
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[1] / "tests" / "parity" / "golden" / "layerwise"
WORDS = "rain falls tomorrow over the quiet harbour while stars burn, e-mail - 3.14 naïve café? 東京 (data-driven)"
QUERIES = ["", "rain", "how do stars   burn hydrogen? "]
DOCUMENTS = ["", "?", "rain falls, tomorrow.", "naïve café (東京)!\n", WORDS, f"{WORDS} {WORDS} {WORDS}"]
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 6,
    "start_layer": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
# the fields of each model's config.json except its size
MINICPM = {
    "architectures": ["LayerWiseMiniCPMForCausalLM"],
    "model_type": "minicpm",
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 8,
    "head_multi": True,
    "head_type": "simple",
}
GEMMA = {
    "architectures": ["CostWiseGemmaForCausalLM"],
    "model_type": "cost_wise_gemma",
    "num_key_value_heads": 1,
    "head_dim": 8,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 2.0,
    "query_pre_attn_scalar": 6,
    "sliding_window": 400,
    "layer_sep": 2,
    "layer_wise": True,
}


def make() -> None:
    """Write checkpoints with random weights in the layouts of the published ones."""
    import torch
    from safetensors.torch import save_file

    from support.checkpoints.decoders import gemma_tokenizer

    shutil.rmtree(GOLDEN, ignore_errors=True)
    torch.manual_seed(0)
    for name, fields in (("minicpm", MINICPM), ("gemma2", GEMMA)):
        directory = GOLDEN / name
        directory.mkdir(parents=True)
        tokenizer = gemma_tokenizer()
        config = {**SHAPE, **fields, "vocab_size": tokenizer.get_vocab_size()}
        tokenizer.save(str(directory / "tokenizer.json"))
        (directory / "config.json").write_text(json.dumps(config, indent=1))
        names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "pad_token": "<pad>"}
        (directory / "tokenizer_config.json").write_text(json.dumps(names))
        tensors = {}
        for tensor, shape in shapes(config).items():
            values = torch.randn(shape) * 0.3
            if name == "minicpm" and len(shape) == 1:
                values += 1  # norm weights
            tensors[tensor] = values
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return tensor name → shape, as in the published checkpoints."""
    size, inner = config["hidden_size"], config["intermediate_size"]
    dim = config.get("head_dim", size // config["num_attention_heads"])
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    norms = ["input_layernorm", "post_attention_layernorm"]
    if config["model_type"] != "minicpm":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], size),
        "model.norm.weight": (size,),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        found |= {f"{layer}.{norm}.weight": (size,) for norm in norms}
        found |= {f"{layer}.self_attn.{n}_proj.weight": (keys, size) for n in "kv"}
        found |= {f"{layer}.self_attn.q_proj.weight": (queries, size)}
        found |= {f"{layer}.self_attn.o_proj.weight": (size, queries)}
        found |= {f"{layer}.mlp.{n}_proj.weight": (inner, size) for n in ("gate", "up")}
        found |= {f"{layer}.mlp.down_proj.weight": (size, inner)}
    heads = range(config["start_layer"], config["num_hidden_layers"] + 1, config.get("layer_sep", 1))
    return found | {f"lm_head.{i}.linear_head.weight": (1, size) for i in range(len(heads))}


def score() -> None:
    """Write token ids and scores, one pair at a time, at each layer with a head."""
    from FlagEmbedding.inference.reranker.decoder_only.layerwise import LayerWiseLLMReranker
    from FlagEmbedding.inference.reranker.decoder_only.lightweight import LightweightLLMReranker

    for name, build in (("minicpm", LayerWiseLLMReranker), ("gemma2", LightweightLLMReranker)):
        directory = GOLDEN / name
        config = json.loads((directory / "config.json").read_text())
        reranker = build(str(directory), use_fp16=False, trust_remote_code=False, devices="cpu")
        seen: list[list[int]] = []

        def note(module: Any, args: Any, kwargs: Any, seen: list[list[int]] = seen) -> None:
            [ids], [mask] = kwargs["input_ids"].tolist(), kwargs["attention_mask"].tolist()
            seen.append([token for token, real in zip(ids, mask, strict=True) if real])

        reranker.model.float().register_forward_pre_hook(note, with_kwargs=True)
        layers = range(config["start_layer"], config["num_hidden_layers"] + 1, config.get("layer_sep", 1))
        found: dict[str, Any] = {"queries": QUERIES, "documents": DOCUMENTS, "ids": [], "scores": {}}
        for layer in layers:
            scores = []
            for query in QUERIES:
                for document in DOCUMENTS:
                    seen.clear()
                    [value] = reranker.compute_score_single_gpu(
                        [(f"A: {query}", f"B: {document}")],
                        cutoff_layers=[layer],
                        max_length=400,
                        device="cpu",
                    )
                    scores.append(float(value))
                    if layer == layers[0]:
                        found["ids"].append(seen[-1])
            found["scores"][str(layer)] = scores
        (directory / "golden.json").write_text(json.dumps(found, ensure_ascii=False))


if __name__ == "__main__":
    {"make": make, "score": score}[sys.argv[1]]()
