"""Random checkpoints of architectures that only transformers serves (`sie-server[compat]`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from support.checkpoints.cache import cached
from support.checkpoints.cross_encoders import SPECIAL_TOKENS, bert_tokenizer, xlm_roberta_tokenizer

LIMIT = 100  # no multiple of 16: slots are longer than the position tables
# family → configuration fields in addition to the common shape
COMPAT: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "deberta-v2": (  # as mxbai-rerank-v1
        transformers.DebertaV2Config,
        transformers.DebertaV2ForSequenceClassification,
        {
            "type_vocab_size": 0,
            "relative_attention": True,
            "position_biased_input": False,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_buckets": 16,
            "max_relative_positions": -1,
            "pooler_hidden_size": 48,
            "pooler_hidden_act": "gelu",
        },
    ),
    "electra": (
        transformers.ElectraConfig,
        transformers.ElectraForSequenceClassification,
        {"type_vocab_size": 2, "embedding_size": 24},
    ),
    "camembert": (  # positions count from the padding token's
        transformers.CamembertConfig,
        transformers.CamembertForSequenceClassification,
        {"type_vocab_size": 1},
    ),
}


@cached
def make_compat(directory: Path, family: str) -> Path:
    config_class, model_class, more = COMPAT[family]
    camembert = family == "camembert"
    tokenizer = xlm_roberta_tokenizer() if camembert else bert_tokenizer()
    pad = 1 if camembert else 0
    torch.manual_seed(2)
    config = config_class(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=LIMIT + (pad + 1 if camembert else 0),
        pad_token_id=pad,
        num_labels=1,
        **more,
    )
    model = model_class(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.25 if parameter.ndim > 1 else 0.1)
        if "norm" in name.lower() and name.endswith("weight"):
            parameter.data += 1.0
    model.save_pretrained(directory)
    tokenizer_class = transformers.XLMRobertaTokenizerFast if camembert else transformers.BertTokenizerFast
    special = SPECIAL_TOKENS["roberta" if camembert else "bert"]
    fast = tokenizer_class(tokenizer_object=tokenizer, model_max_length=LIMIT, **special)
    fast.save_pretrained(directory)
    return directory
