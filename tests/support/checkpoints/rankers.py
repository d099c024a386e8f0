"""Random prompted rerankers that are not plain causal models, each with its reference.

The references are the classes of transformers with heads added here, as the code of each repository adds them. For
vision-language models that is the whole multimodal model, so that its three-coordinate positions verify ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from support.checkpoints.decoders import byte_level_tokenizer, roughen_decoder
from support.checkpoints.encoders import write_json

TEXT = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
}
VISION = {"depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
JUDGE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: {}<Query>:{}\n'
    "<Document>:{}<|im_end|>\n<|im_start|>assistant\n"
)


@dataclass
class Made:
    """A checkpoint on disk and its reference."""

    directory: Path
    template: str
    ids: Callable[[str, str], list[int]]  # query, document → all token ids that the reference reads
    logit: Callable[[list[int]], float]


def save_tokenizer(directory: Path, bos: str | None = None) -> transformers.PreTrainedTokenizerFast:
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(bos), bos_token=bos, pad_token="<|endoftext|>"
    )
    fast.save_pretrained(directory)
    return fast


def edit_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | fields)


def make_nemotron(directory: Path) -> Made:
    """llama-nemotron-rerank: Llama 3.2 with `score`, read as transformers reads it with `is_causal` off."""
    tokenizer = save_tokenizer(directory, "<|begin_of_text|>")
    rope = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    config = transformers.LlamaConfig(
        **TEXT, vocab_size=len(tokenizer) + 8, num_labels=1, rope_parameters=rope, tie_word_embeddings=True
    )
    torch.manual_seed(1)
    model = transformers.LlamaForSequenceClassification(config).eval()
    roughen_decoder(model)
    model.save_pretrained(directory)
    own = {"AutoConfig": "llama_bidirectional_model.LlamaBidirectionalConfig"}
    name = "LlamaBidirectionalForSequenceClassification"
    edit_config(
        directory,
        architectures=[name],
        auto_map=own,
        model_type="llama_bidirec",
        pooling="avg",
        temperature=0.5,
    )
    model.config.is_causal = False

    def ids(query: str, document: str) -> list[int]:
        return list(tokenizer(f"question:{query} \n \n passage:{document}")["input_ids"])

    def logit(ids: list[int]) -> float:
        hidden = model.model(torch.tensor([ids])).last_hidden_state
        return float(model.score(hidden.mean(1))) / 0.5

    return Made(directory, "nemotron-rerank", ids, logit)


def make_nemotron_vl(directory: Path) -> Made:
    """llama-nemotron-rerank-vl: the same Llama below `model.language_model`, with SigLIP and a projector."""
    made = make_nemotron(directory)
    path = directory / "model.safetensors"
    tensors = {
        name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name: tensor
        for name, tensor in load_file(path).items()
    }
    tower = ("model.vision_model.vision_model.post_layernorm.weight", "model.mlp1.0.weight")
    save_file(tensors | {name: torch.ones(4) for name in tower}, path)
    llama = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    head = {"pooling": llama.pop("pooling"), "temperature": llama.pop("temperature")}
    write_json(
        directory / "config.json",
        {"architectures": ["LlamaNemotronVLForSequenceClassification"], "llm_config": llama, **head},
    )
    return made


def make_qwen3_vl(directory: Path, *, tied: bool = True) -> Made:
    """Qwen3-VL-Reranker: the whole vision-language model, as saved by transformers."""
    tokenizer = save_tokenizer(directory)
    rope = {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default", "rope_theta": 5e6}
    config = transformers.Qwen3VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer) + 8, "head_dim": 16, "rope_parameters": rope},
        vision_config={**VISION, "hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 48}
        | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        tie_word_embeddings=tied,
    )
    torch.manual_seed(2)
    model = transformers.Qwen3VLForConditionalGeneration(config).eval()
    roughen_decoder(model)
    model.save_pretrained(directory)
    instruction = "Given a search query, retrieve relevant candidates that answer the query."
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])

    def ids(query: str, document: str) -> list[int]:
        return list(tokenizer(JUDGE.format(instruction, query, document))["input_ids"])

    def logit(ids: list[int]) -> float:
        last = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0, -1]
        return float(last[yes] - last[no])

    return Made(directory, "qwen3-vl-reranker", ids, logit)


def make_jina_m0(directory: Path) -> Made:
    """jina-reranker-m0: Qwen2-VL with the tensor names of its release, `visual.` and `model.`, and an MLP head."""
    tokenizer = save_tokenizer(directory)
    rope = {"type": "mrope", "mrope_section": [2, 2, 2]}
    config = transformers.Qwen2VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer) + 8, "rope_parameters": rope | {"rope_theta": 1e6}},
        vision_config={**VISION, "embed_dim": 32, "hidden_size": 48, "mlp_ratio": 1},
    )
    torch.manual_seed(3)
    model = transformers.Qwen2VLForConditionalGeneration(config).eval()
    size = TEXT["hidden_size"]
    score = torch.nn.Sequential(torch.nn.Linear(size, size), torch.nn.ReLU(), torch.nn.Linear(size, 1))
    roughen_decoder(model)
    roughen_decoder(score)
    model.save_pretrained(directory)
    names = {"model.language_model.": "model.", "model.visual.": "visual."}
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("lm_head.")}
    for new, old in names.items():
        tensors = {old + n.removeprefix(new) if n.startswith(new) else n: t for n, t in tensors.items()}
    tensors |= {f"score.{name}": tensor for name, tensor in score.state_dict().items()}
    save_file(
        {n: t.detach().clone().contiguous() for n, t in tensors.items()}, directory / "model.safetensors"
    )
    flat = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    text = flat.pop("text_config")
    text.pop("rope_parameters")  # the release is older than that field
    write_json(
        directory / "config.json",
        flat | text | {"architectures": ["JinaVLForRanking"], "rope_theta": 1e6, "rope_scaling": rope},
    )

    def ids(query: str, document: str) -> list[int]:
        return [*tokenizer(f"**Document**:\n{document}\n**Query**:\n{query}")["input_ids"], 100]

    def logit(ids: list[int]) -> float:
        asked = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))}
        hidden = model(**asked, output_hidden_states=True).hidden_states[-1]
        return float(score(hidden[:, -1])) - 2.65

    return Made(directory, "jina-reranker-m0", ids, logit)


MAKERS = {
    "nemotron": make_nemotron,
    "nemotron-vl": make_nemotron_vl,
    "qwen3-vl": make_qwen3_vl,
    "jina-m0": make_jina_m0,
}
