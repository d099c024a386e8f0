"""Random decoders with the modules of an embedding model, in the layouts of published models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from support.checkpoints.cache import cached
from support.checkpoints.decoders import end_with, make_decoder
from support.checkpoints.encoders import write_json, write_modules

END = {"gemma": "<eos>", "llama": "<|endoftext|>", "mistral": "<|endoftext|>"}
LIMIT = 96
TASK = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"


@cached
def make_embedder(
    directory: Path,
    family: str,
    *,
    layout: str = "bare",
    pooling: dict[str, Any] | None = None,
    **fields: Any,
) -> Path:
    """Write a random decoder with modules.json.

    Layouts: `bare` (AutoModel's class and names), `qwen3-embedding` (a language model's class, the bare model's names)
    and `causal` (a language model with all its tensors).
    """
    make_decoder(directory, family, **fields)
    if layout != "causal":
        architectures = (directory / "config.json").read_text(encoding="utf-8")
        AutoModel.from_pretrained(directory, dtype=torch.float32).save_pretrained(directory)
        if layout == "qwen3-embedding":
            (directory / "config.json").write_text(architectures, encoding="utf-8")
    end_with(directory, END.get(family, "<|endoftext|>"))
    write_modules(
        directory, *(f"sentence_transformers.models.{k}" for k in ("Transformer", "Pooling", "Normalize"))
    )
    write_json(
        directory / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": 48,
            **(pooling or {"pooling_mode_lasttoken": True, "pooling_mode_cls_token": False}),
        },
    )
    write_json(
        directory / "config_sentence_transformers.json",
        {
            "prompts": {"query": TASK, "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": LIMIT, "do_lower_case": False})
    return directory
