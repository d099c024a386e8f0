"""Keys of config.json change the logits exactly as they change those of transformers, or stop the load by name."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts
from sie_server.errors import ModelLoadFailed
from sie_server.models.batch import Tokens
from support.checkpoints.cross_encoders import FAMILIES, make_cross_encoder
from support.checkpoints.decoders import DECODERS, make_decoder
from support.checkpoints.library import make_library_classifier

DOCUMENTS = [
    "rain falls",
    "stars burn hydrogen into helium for billions of years " * 4,
    "data [PAD] <pad> data",
]
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
ABSENT = "absent"
# family, changed keys
CASES: list[tuple[str, dict[str, Any]]] = [
    ("bert", {"hidden_act": "relu"}),
    ("bert", {"layer_norm_eps": 0.1}),
    ("bert", {"num_attention_heads": 2}),
    ("roberta", {"pad_token_id": 3}),
    ("modernbert", {"hidden_activation": "silu"}),
    ("modernbert", {"classifier_activation": "relu"}),
    ("modernbert", {"classifier_pooling": "mean"}),
    ("modernbert", {"norm_eps": 0.1}),
    ("modernbert", {"local_attention": 6}),
    ("modernbert", {"layer_types": None, "global_attn_every_n_layers": 2}),
    ("modernbert", {"sliding_window": 3}),
    ("modernbert", {"sliding_window": 5, "local_attention": 20}),
    ("modernbert", {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    ("qwen3", {"hidden_act": "relu", "rms_norm_eps": 0.1}),
    ("qwen3", {"rope_scaling": LINEAR}),
    ("qwen3", {"rope_scaling": {"type": "linear", "factor": 3.0}}),
    ("qwen3", {"rope_parameters": LINEAR | {"rope_theta": 500.0}}),
    ("llama", {"rope_parameters": None, "rope_theta": 500.0}),
    ("llama", {"is_causal": False}),
    ("gemma", {"hidden_act": "relu"}),
    ("gemma2", {"hidden_activation": "relu"}),
    ("gemma2", {"attn_logit_softcapping": 1.0}),
    ("gemma2", {"final_logit_softcapping": 1.0}),
    ("gemma2", {"query_pre_attn_scalar": 3}),
]
# keys that the library does not read for this family, or whose default is the value of the checkpoint
UNREAD: list[tuple[str, dict[str, Any]]] = [
    ("modernbert", {"hidden_act": "silu"}),
    ("gemma", {"hidden_activation": "relu"}),
    ("gemma2", {"hidden_act": "relu"}),
    ("mistral", {"attention_bias": True, "mlp_bias": True}),
    ("distilbert", {"layer_norm_eps": 0.1}),
    ("roberta", {"pad_token_id": ABSENT}),
]
# the weights of another shape or number are missing, or the value is not implemented: the message names the reason
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("bert", {"type_vocab_size": 5}, "token_type_embeddings"),
    ("bert", {"max_position_embeddings": 400}, "position_embeddings"),
    ("modernbert", {"norm_bias": True}, "bias"),
    ("modernbert", {"classifier_bias": True}, "bias"),
    ("modernbert", {"attention_bias": True}, "bias"),
    ("modernbert", {"mlp_bias": True}, "bias"),
    ("llama", {"head_dim": 4}, "q_proj"),
    ("llama", {"num_hidden_layers": None}, "num_layers is None"),
    ("llama", {"num_key_value_heads": 1}, "k_proj"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
    ("qwen3", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma2", {"is_causal": False}, "is_causal"),
    ("gemma2", {"tie_word_embeddings": False}, "lm_head"),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("keys")

    @cache
    def made(family: str) -> Path:
        encoders = make_cross_encoder if family in FAMILIES else make_library_classifier
        make = make_decoder if family in DECODERS else encoders
        return make(root / family, family)

    return made


def changed(made: Path, directory: Path, keys: dict[str, Any]) -> Path:
    shutil.copytree(made, directory, dirs_exist_ok=True)
    config = json.loads((made / "config.json").read_text()) | keys
    kept = {key: value for key, value in config.items() if value != ABSENT}
    (directory / "config.json").write_text(json.dumps(kept))
    return directory


def engine_of(directory: Path, family: str) -> Engine:
    template = DECODERS[family][3] if family in DECODERS else None
    return Engine(directory, device="cpu", dtype="float32", template=template)


def ours(engine: Engine) -> tuple[list[float], list[Tokens]]:
    job = engine.tokenize_plain(ScoreTexts("how do stars burn", DOCUMENTS, engine.max_seq_length))
    for work, result in zip(job.work, engine.run(job.work), strict=True):
        job.put(work.index, result)
    return job.results, [work.tokens for work in sorted(job.work, key=lambda work: work.index)]


def theirs(directory: Path, engine: Engine, sequences: list[Tokens], family: str) -> list[float]:
    auto: Any = transformers.AutoModelForSequenceClassification
    auto = transformers.AutoModelForCausalLM if family in DECODERS else auto
    model = auto.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    found = []
    for tokens in sequences:
        ids = torch.tensor(tokens.ids)[None].long()
        types = (torch.arange(ids.shape[1]) >= tokens.type_boundary).long()[None]
        more = {"token_type_ids": types} if family == "bert" else {}
        with torch.inference_mode():
            logits = model(input_ids=ids, **more).logits[0]
        found.append(_read(logits, engine, family))
    return found


def _read(logits: torch.Tensor, engine: Engine, family: str) -> float:
    if family not in DECODERS:
        return float(logits.squeeze())
    head: Any = engine.spec.head
    ids = [
        name if isinstance(name, int) else engine._tokenizer.token_id(name)
        for name in (head.template.positive, head.template.negative)
        if name is not None
    ]
    last = logits[-1, ids]
    return float(last[0] - last[1] if len(ids) > 1 else last[0])


@pytest.mark.parametrize(("family", "keys"), [*CASES, *UNREAD], ids=str)
def test_a_key_changes_the_logits_as_in_the_library(
    family: str, keys: dict[str, Any], checkpoints: Any, tmp_path: Path
) -> None:
    directory = changed(checkpoints(family), tmp_path, keys)
    engine = engine_of(directory, family)
    logits, sequences = ours(engine)
    assert logits == pytest.approx(theirs(directory, engine, sequences, family), abs=1e-3)
    before, _ = ours(engine_of(checkpoints(family), family))
    same = logits == pytest.approx(before, abs=1e-3)
    assert same == ((family, keys) in UNREAD)


@pytest.mark.parametrize(("family", "keys", "message"), REFUSED, ids=str)
def test_a_key_that_is_not_implemented_stops_the_load(
    family: str, keys: dict[str, Any], message: str, checkpoints: Any, tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadFailed, match=message):
        engine_of(changed(checkpoints(family), tmp_path, keys), family)
