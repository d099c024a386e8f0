"""Random decoders with the real configuration fields and kinds of tokenizers, in the layout of the Hub.

Tokenizers are trained on a small corpus: byte-level BPE with control tokens (Qwen, Llama, Mistral), and Gemma's BPE
over `▁` with byte fallback. The corpus contains the templates, so that prompts are short and answers are one token.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from sie_server.templates import named_template, template_names
from support.checkpoints.cache import cached
from support.checkpoints.cross_encoders import _corpus

# Qwen2's pre-tokeniser pattern (tokenizer.json of Qwen2 and Qwen3)
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ANSWERS = ["yes", "no", "Yes", "No", "1", "0"]


def _texts() -> list[str]:
    pieces = [piece for name in template_names() for piece in named_template(name).pieces]
    return _corpus() + pieces * 20 + ANSWERS * 200


def byte_level_tokenizer(bos: str | None = None) -> Tokenizer:
    """Return a tokenizer as in Qwen, Llama 3 and Mistral; the post-processor puts `bos` first, if given."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(_texts(), BpeTrainer(vocab_size=900, initial_alphabet=alphabet))
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + ([bos] if bos else [])
    tokenizer.add_special_tokens([AddedToken(c, special=True, normalized=False) for c in control])
    tokenizer.add_tokens([AddedToken(c, special=False, normalized=False) for c in ("<think>", "</think>")])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, tokenizer.token_to_id(bos))],
        )
    return tokenizer


def gemma_tokenizer() -> Tokenizer:
    """Return a tokenizer that maps spaces to `▁` and unknown characters to bytes, without word boundaries."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    # split into words for training only; the real tokenizer applies all merges of its table
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?[^▁\n]+|\n|▁"), "isolated")
    special = ["<pad>", "<eos>", "<bos>", "<unk>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer.train_from_iterator(_texts(), BpeTrainer(vocab_size=1100, special_tokens=special))
    # bytes are ordinary entries; the training adds them as special tokens only to have them in the vocabulary
    table = json.loads(tokenizer.to_str())
    table["added_tokens"] = [t for t in table["added_tokens"] if not t["content"].startswith("<0x")]
    table["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(table))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
    )
    return tokenizer


# family → config class, model class, tokenizer, template for tests, further configuration fields
DECODERS: dict[str, tuple[Any, Any, Any, str, dict[str, Any]]] = {
    "qwen2": (
        transformers.Qwen2Config,
        transformers.Qwen2ForCausalLM,
        byte_level_tokenizer,
        "mxbai-rerank-v2",
        {
            "rope_theta": 1_000_000.0,
            "use_sliding_window": False,
            "sliding_window": 64,
            "num_key_value_heads": 2,
        },
    ),
    "qwen3": (
        transformers.Qwen3Config,
        transformers.Qwen3ForCausalLM,
        byte_level_tokenizer,
        "qwen3-reranker",
        {"head_dim": 16, "tie_word_embeddings": True, "rope_theta": 1_000_000.0, "num_key_value_heads": 2},
    ),
    "zerank": (
        transformers.Qwen3Config,
        transformers.Qwen3ForCausalLM,
        byte_level_tokenizer,
        "zerank",
        {"head_dim": 8, "attention_bias": True, "num_key_value_heads": 4},
    ),
    "gemma": (
        transformers.GemmaConfig,
        transformers.GemmaForCausalLM,
        gemma_tokenizer,
        "bge-reranker-gemma",
        {"head_dim": 16, "hidden_act": "gelu", "num_key_value_heads": 1},
    ),
    "gemma2": (
        transformers.Gemma2Config,
        transformers.Gemma2ForCausalLM,
        gemma_tokenizer,
        "bge-reranker-gemma",
        {
            "head_dim": 16,
            "num_key_value_heads": 2,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 2.0,  # low enough to have an effect
            "final_logit_softcapping": 3.0,
            "sliding_window": 512,
        },
    ),
    "llama": (
        transformers.LlamaConfig,
        transformers.LlamaForCausalLM,
        lambda: byte_level_tokenizer("<|begin_of_text|>"),
        "ctxl-rerank-v2",
        {
            "num_key_value_heads": 2,
            "mlp_bias": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "mistral": (
        transformers.MistralConfig,
        transformers.MistralForCausalLM,
        lambda: byte_level_tokenizer("<s>"),
        "ctxl-rerank-v2",
        {"num_key_value_heads": 2, "sliding_window": 512},
    ),
}


def roughen_decoder(model: torch.nn.Module, family: str = "") -> None:
    """Set weights so uneven that wrong code does not agree by chance; Gemma adds 1 to its norm weights itself."""
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.1)
        if name.endswith("norm.weight") and not family.startswith("gemma"):
            parameter.data += 1.0


@cached
def make_decoder(
    directory: Path,
    family: str,
    *,
    positions: int = 1024,
    seed: int = 0,
    labels: int = 0,
    **fields: Any,
) -> Path:
    """Write a random decoder of `family` to `directory` with `save_pretrained`; with `labels` as a classifier."""
    config_class, model_class, build_tokenizer, _, own = DECODERS[family]
    tokenizer = build_tokenizer()
    shape: dict[str, Any] = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    shape.update(own | fields)
    torch.manual_seed(seed)
    config = config_class(
        vocab_size=tokenizer.get_vocab_size() + 24,  # real embedding tables have unused rows
        max_position_embeddings=positions,
        **shape,
    )
    if labels:
        config.num_labels = labels
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    else:
        model = model_class(config)
    roughen_decoder(model, family)
    directory.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(directory)
    bos = {"gemma": "<bos>", "gemma2": "<bos>", "llama": "<|begin_of_text|>", "mistral": "<s>"}.get(family)
    pad = "<pad>" if family.startswith("gemma") else "<|endoftext|>"
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, pad_token=pad)
    fast.save_pretrained(directory)
    return directory


def end_with(directory: Path, token: str) -> None:
    """Make the tokenizer append `token` to every text, as Qwen3-Embedding's tokenizer.json does."""
    path = str(directory / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    before = tokenizer.encode("a").tokens[:-1]  # bos, if the family has one
    names = [*before, token]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=" ".join([*before, "$A", token]),
                pair=" ".join([*before, "$A", token, "$B", token]),
                special_tokens=[(name, tokenizer.token_to_id(name)) for name in dict.fromkeys(names)],
            ),
        ]
    )
    tokenizer.save(path)
