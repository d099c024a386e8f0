"""Other sequence classifiers and encoders of transformers, run by that library: the extra `sie-server[compat]`.

Scores and vectors are the same, but batches are padded and slower than in a family of our own. Models run in fp32: the
library computes the logit in the model's dtype, and logits rounded to bf16 would tie. Weights are loaded from the
checkpoint by name and shape, so no head is initialised at random, and code from a repository is never loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from sie_server import install
from sie_server.errors import cut
from sie_server.models.batch import Group, PackedBatch, Readout
from sie_server.models.heads.classifier import Classifier
from sie_server.models.layers.linear import Weights
from sie_server.models.spec import AttentionNeeds, BackboneSpec, UnsupportedCheckpoint

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
OLD_BUFFERS = r"attn\.attention\.(masked_)?bias$"  # of GPT-Neo; the library's classes name those of others
# Model types in which padding changes the hidden states of the tokens next to it: every text is run on its own
UNPADDED = {"convbert", "mobilebert"}
# Model types whose encoders are served
ENCODERS = {
    "bloom": "BloomModel",
    "convbert": "ConvBertModel",
    "data2vec-text": "Data2VecTextModel",
    "deberta": "DebertaModel",
    "deberta-v2": "DebertaV2Model",
    "ernie": "ErnieModel",
    "gpt2": "GPT2Model",
    "gpt_neo": "GPTNeoModel",
    "gpt_neox": "GPTNeoXModel",
    "gptj": "GPTJModel",
    "ibert": "IBertModel",
    "megatron-bert": "MegatronBertModel",
    "mobilebert": "MobileBertModel",
    "mt5": "MT5EncoderModel",
    "opt": "OPTModel",
    "rembert": "RemBertModel",
    "roberta-prelayernorm": "RobertaPreLayerNormModel",
    "roformer": "RoFormerModel",
    "squeezebert": "SqueezeBertModel",
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "xlm-roberta-xl": "XLMRobertaXLModel",
}
# Model types whose tokenizers give the classification token a third token type, which `Tokens` cannot express
THREE_TYPES = {"funnel", "xlnet"}


@dataclass(frozen=True, kw_only=True)
class CompatSpec(BackboneSpec):
    """The fields of every transformer, and the library's configuration object."""

    config: Any

    @property
    def attention(self) -> AttentionNeeds:
        return AttentionNeeds(0, "attention inside transformers")


def serves(architecture: str) -> bool:
    """Return True when the library is installed and has a classifier of exactly this name."""
    if not architecture.endswith(SUFFIX):
        return False
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    except ImportError:
        return False
    return architecture in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()


def is_decoder(architecture: str) -> bool:
    """Return True for a classifier over a language model, which needs a prompt. It fills no masks."""
    from transformers.models.auto import modeling_auto as auto

    names = auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    kinds = {kind for kind, name in names.items() if name == architecture}
    return bool(kinds & set(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)) and not kinds & set(
        auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )


def serves_encoder(architecture: str) -> bool:
    """Return True when the library is installed and the architecture is in `ENCODERS`."""
    return architecture in ENCODERS.values() and find_spec("transformers") is not None


def bare_architecture(model_type: str) -> str | None:
    """Return the class of an encoder without a head; None for an unknown type."""
    return ENCODERS.get(model_type)


def hint(architecture: str) -> str:
    """Return the end of the error message about an unsupported architecture."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        if architecture.endswith(SUFFIX) or architecture in ENCODERS.values():
            return f". Others may run through transformers: {install('compat')}"
    return ""


def read_encoder(config: dict[str, Any]) -> CompatSpec:
    """Read the configuration of a model without a head, where the id of a padding token has no effect."""
    return read(config if config.get("pad_token_id") is not None else {**config, "pad_token_id": 0})


def read(config: dict[str, Any]) -> CompatSpec:
    """Read the common fields; all others stay in the library's configuration."""
    from transformers import CONFIG_MAPPING

    kind = config["model_type"]
    if kind in THREE_TYPES or kind not in CONFIG_MAPPING:
        raise UnsupportedCheckpoint(f"model_type {kind!r} is not supported through transformers")
    try:
        known = CONFIG_MAPPING[kind].from_dict(config)
    except Exception as error:  # the library raises errors of every type
        raise _refused_by_library(error) from error
    if known.pad_token_id is None:
        raise UnsupportedCheckpoint(
            "config.json has no pad_token_id, which a padded batch needs; set it to the id of the tokenizer's pad_token"
        )
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


def _refused_by_library(error: Exception) -> UnsupportedCheckpoint:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UnsupportedCheckpoint(
        f"config.json: transformers cannot build the model of it: {cut(reason, 300)}"
    )


class _Padded:
    """A model of the library, called with padded batches."""

    def __init__(self, build: Callable[[], Any], spec: CompatSpec, weights: Weights) -> None:
        self._model, self._types = _loaded(build, weights), spec.token_types
        self._alone = spec.config.model_type in UNPADDED
        self._lock = Lock() if _keeps_state(spec.config) else nullcontext()

    def outputs(self, batch: PackedBatch) -> Iterator[tuple[Group, slice, Any]]:
        """Yield the library's output for the sequences of each group: all of them, or some after the others."""
        for group in batch.groups:
            for part in self._parts(batch.lengths[group.sequences], group):
                yield group, part, self._call(batch, group, part)

    def _parts(self, lengths: tuple[int, ...], group: Group) -> Iterator[slice]:
        if self._alone:
            yield from (slice(i, i + 1) for i in range(group.count))
        elif group.unseen:
            # a token that is not attended to may attend to nothing, and then to every key alike, also to padding
            for _, members in groupby(range(group.count), key=lengths.__getitem__):
                alike = list(members)
                yield slice(alike[0], alike[-1] + 1)
        else:
            yield slice(0, group.count)

    def _call(self, batch: PackedBatch, group: Group, part: slice) -> Any:
        # a slot may be longer than the model's position table
        longest = batch.lengths[group.sequences.start + part.start]
        ids, types = (
            rows[group.rows].unflatten(0, (group.count, group.slot))[part, :longest].long()
            for rows in (batch.ids, batch.types)
        )
        counts = batch.keys[group.sequences][part]
        seen = (torch.arange(longest, device=ids.device) < counts[:, None]).long()
        more = {"token_type_ids": types} if self._types else {}
        with self._lock:
            return self._model(input_ids=ids, attention_mask=seen, **more)


def _keeps_state(config: Any) -> bool:
    """Return whether a pass changes the model: rotary frequencies of these kinds follow the longest text so far."""
    kinds = json.dumps(getattr(config, "rope_parameters", None), default=str)
    return '"dynamic"' in kinds or '"longrope"' in kinds


class CompatModel(_Padded):
    """Packed batch → logits: encoder and head are one model of the library."""

    def __init__(self, spec: CompatSpec, weights: Weights) -> None:
        from transformers import AutoModelForSequenceClassification

        auto: Any = AutoModelForSequenceClassification  # untyped in the library
        super().__init__(lambda: auto.from_config(spec.config, trust_remote_code=False), spec, weights)

    def forward(self, batch: PackedBatch, readout: Readout) -> Tensor:
        """Return the logits, [sequences, labels]."""
        return torch.cat([output.logits for _, _, output in self.outputs(batch)])


class CompatEncoder(_Padded):
    """Packed batch → hidden states; the checkpoint may have been saved from a class with a head."""

    def __init__(self, spec: CompatSpec, weights: Weights) -> None:
        import transformers

        kind: Any = getattr(transformers, ENCODERS[spec.config.model_type])
        super().__init__(lambda: kind(spec.config), spec, weights.inside(kind.base_model_prefix))
        self._size = spec.hidden_size

    def forward(self, batch: PackedBatch, readout: Readout) -> Tensor:
        """Return the last hidden states: [rows, hidden], or [sequences, hidden] of the read-out tokens."""
        hidden = torch.zeros(batch.rows, self._size, device=batch.ids.device)
        for group, part, output in self.outputs(batch):
            states = output.last_hidden_state  # [sequences, longest, hidden]
            hidden[group.rows].unflatten(0, (group.count, group.slot))[part, : states.shape[1]] = states
        rows = batch.rows_of(readout)
        return hidden if rows is None else hidden[rows]


def _loaded(build: Callable[[], Any], weights: Weights) -> Any:
    """Build a model of the library with the checkpoint's weights, in fp32."""
    try:
        with torch.device("meta"):  # without memory: the file has to have every tensor of the configuration
            described = build()
    except Exception as error:
        raise _refused_by_library(error) from error
    tied: dict[str, str] = dict(described.all_tied_weights_keys)  # name → the tensor that it repeats
    shapes = {name: tensor.shape for name, tensor in described.state_dict().items()}
    stored = {name: name for name in shapes if name not in tied}
    for name, source in tied.items():
        if weights.has(source):
            weights.leave(name)
        else:  # the file has the tensor under its other name
            stored[source] = name
    for pattern in (*(described._keys_to_ignore_on_load_unexpected or ()), OLD_BUFFERS):
        weights.ignore(pattern)
    for name, file_name in stored.items():
        weights.check(file_name, *shapes[name])
    model = build()
    taken = {
        name: weights.take(file_name, *shapes[name], dtype=torch.float32)
        for name, file_name in stored.items()
    }
    model.load_state_dict(taken, assign=True, strict=False)
    model.tie_weights()
    return model.to(device=next(iter(taken.values())).device, dtype=torch.float32).eval()


class CompatClassifier:
    """The identity: `CompatModel` returns logits."""

    readout: Readout = "first"

    def logits(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Return [sequences] fp32 from [sequences, 1]; several labels unchanged."""
        return hidden.squeeze(1).float()


def classifier(spec: BackboneSpec, weights: Weights, labels: int = 1) -> Classifier:
    """Return the head, which has no weights."""
    return CompatClassifier()
