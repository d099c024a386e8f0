"""Any other sequence classifier of transformers, run by that library: the extra `sie-server[compat]`.

Scores are the same, but batches are padded and slower than in a family of our own. Models run in fp32: the library
computes the logit in the model's dtype, and logits rounded to bf16 would tie. Weights are loaded from the checkpoint by
name and shape, so no head is initialised at random, and code from a repository is never loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sie_server import install
from sie_server.models.batch import PackedBatch, Readout
from sie_server.models.heads.classifier import Classifier
from sie_server.models.layers.linear import Weights
from sie_server.models.spec import BackboneSpec, UnsupportedCheckpoint

MOST_LAYERS = 1000
SUFFIX = "ForSequenceClassification"
# Model types whose positions start at the row after the padding token's
OFFSET_POSITIONS = {
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "mpnet",
    "roberta-prelayernorm",
    "xmod",
}
# Model types whose tokenizers give the classification token a third token type, which `Tokens` cannot express
THREE_TYPES = {"funnel", "xlnet"}


@dataclass(frozen=True, kw_only=True)
class CompatSpec(BackboneSpec):
    """The fields of every transformer, and the library's configuration object."""

    config: Any


def serves(architecture: str) -> bool:
    """Return True when the library is installed and has a classifier of exactly this name."""
    if not architecture.endswith(SUFFIX):
        return False
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    except ImportError:
        return False
    return architecture in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()


def hint(architecture: str) -> str:
    """Return the end of the error message about an unsupported architecture."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        if architecture.endswith(SUFFIX):
            return f". Others may run through transformers: {install('compat')}"
    return ""


def read(config: dict[str, Any]) -> CompatSpec:
    """Read the common fields; all others stay in the library's configuration."""
    from transformers import CONFIG_MAPPING

    kind = config["model_type"]
    if kind in THREE_TYPES or kind not in CONFIG_MAPPING:
        raise UnsupportedCheckpoint(f"model_type {kind!r} is not supported through transformers")
    known = CONFIG_MAPPING[kind].from_dict(config)
    if known.pad_token_id is None:
        raise UnsupportedCheckpoint("config.json has no pad_token_id, which a padded batch needs")
    if not 1 <= known.num_hidden_layers <= MOST_LAYERS:
        raise UnsupportedCheckpoint(
            f"config.json: the number of layers is {known.num_hidden_layers!r}; expected 1 to {MOST_LAYERS}"
        )
    offset = known.pad_token_id + 1 if kind in OFFSET_POSITIONS else 0
    return CompatSpec(
        vocab_size=known.vocab_size,
        hidden_size=known.hidden_size,
        max_length=getattr(known, "max_position_embeddings", 512) - offset,
        pad_token_id=known.pad_token_id,
        token_types=getattr(known, "type_vocab_size", 0) > 1,
        config=known,
    )


class CompatModel:
    """Packed batch → logits: encoder and head are one model of the library."""

    def __init__(self, spec: CompatSpec, weights: Weights) -> None:
        from transformers import AutoModelForSequenceClassification

        self._types = spec.token_types
        auto: Any = AutoModelForSequenceClassification  # untyped in the library
        with torch.device("meta"):  # without memory: the file has to have every tensor of the configuration
            described = auto.from_config(spec.config, trust_remote_code=False)
        for name, tensor in described.state_dict().items():
            weights.check(name, *tensor.shape)
        model = auto.from_config(spec.config, trust_remote_code=False)
        taken = {
            name: weights.take(name, *tensor.shape, dtype=torch.float32)
            for name, tensor in model.state_dict().items()
        }
        model.load_state_dict(taken, assign=True)
        self._model = model.to(device=next(iter(taken.values())).device, dtype=torch.float32).eval()

    def forward(self, batch: PackedBatch, readout: Readout) -> Tensor:
        """Return the logits, [sequences, 1]; each group of the batch is one padded call."""
        return torch.cat([self._group(batch, index) for index in range(len(batch.groups))])

    def _group(self, batch: PackedBatch, index: int) -> Tensor:
        group = batch.groups[index]
        longest = batch.lengths[group.sequences.start]  # a slot may be longer than the model's position table
        ids, types = (
            rows[group.rows].unflatten(0, (group.count, group.slot))[:, :longest].long()
            for rows in (batch.ids, batch.types)
        )
        seen = torch.ones_like(ids) if group.valid is None else group.valid[:, :longest].long()
        more = {"token_type_ids": types} if self._types else {}
        logits: Tensor = self._model(input_ids=ids, attention_mask=seen, **more).logits
        return logits


class CompatClassifier:
    """The identity: `CompatModel` returns logits."""

    readout: Readout = "first"

    def logits(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Return [sequences] fp32 from [sequences, 1]."""
        return hidden.squeeze(1).float()


def classifier(spec: BackboneSpec, weights: Weights) -> Classifier:
    """Return the head, which has no weights."""
    return CompatClassifier()
