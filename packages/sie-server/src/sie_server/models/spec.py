"""What a checkpoint is, read from its own `config.json` and the files beside it; nothing here is guessed.

`read_spec` is called once per load (`engine.engine`), and everything after it works from the frozen result.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Pooling = Literal["cls", "mean"]
Activation = Literal["identity", "sigmoid"]


class UnsupportedCheckpoint(Exception):
    """The checkpoint is readable but not one we can serve; the message says why and what would do."""


@dataclass(frozen=True)
class EncoderSpec:
    """Shape of a bidirectional transformer encoder with learned absolute positions."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    hidden_act: str
    layer_norm_eps: float
    position_rows: int  # rows of the position table
    position_offset: int  # row of the first token's position: 0 for BERT, padding_idx + 1 for (XLM-)RoBERTa
    type_rows: int  # rows of the token-type table
    pad_token_id: int

    @property
    def max_length(self) -> int:
        """Longest sequence, in tokens, that has a position embedding for every token."""
        return self.position_rows - self.position_offset


@dataclass(frozen=True)
class ClassifierSpec:
    """A cross-encoder head: read-out token → dense → tanh → one logit."""

    layout: Literal["bert", "roberta"]
    activation: Activation


@dataclass(frozen=True)
class EmbeddingSpec:
    """A pooled vector, and one vector per token when `token_vectors`.

    With `dense_weight` the checkpoint also scores pairs, as the embedded model does:
    `dense_weight · cos(q, d) + Σᵢ wᵢ maxⱼ cos(qᵢ, dⱼ) / Σᵢ wᵢ`, w being the query tokens' weights.
    """

    pooling: Pooling
    normalize: bool
    token_vectors: bool = False
    dense_weight: float | None = None


@dataclass(frozen=True)
class ModelSpec:
    """Everything the engine needs to know about a checkpoint."""

    architecture: str
    encoder: EncoderSpec
    head: ClassifierSpec | EmbeddingSpec
    max_seq_length: int  # default limit, tokens per text or pair including special tokens

    @property
    def scores(self) -> bool:
        """True when the checkpoint can serve `score`."""
        return isinstance(self.head, ClassifierSpec) or self.head.dense_weight is not None

    @property
    def outputs(self) -> list[str]:
        """What clients can ask for: score, dense, multivector."""
        outputs = ["score"] if self.scores else []
        if isinstance(self.head, EmbeddingSpec):
            outputs += ["dense", "multivector"] if self.head.token_vectors else ["dense"]
        return outputs

    @property
    def dims(self) -> dict[str, int]:
        """Width of each vector output."""
        return {name: self.encoder.hidden_size for name in self.outputs if name != "score"}


# architecture → how its parts are called; the position offset is added from `pad_token_id` for the RoBERTa family
CLASSIFIERS: dict[str, Literal["bert", "roberta"]] = {
    "BertForSequenceClassification": "bert",
    "RobertaForSequenceClassification": "roberta",
    "XLMRobertaForSequenceClassification": "roberta",
}
ENCODERS = {"BertModel": "bert", "RobertaModel": "roberta", "XLMRobertaModel": "roberta"}


def read_spec(directory: Path) -> ModelSpec:
    """Read a checkpoint directory's configuration.

    Raises:
        UnsupportedCheckpoint: a file is missing or unreadable, or describes something we do not serve.
    """
    config = _read_json(directory / "config.json")
    architecture = (config.get("architectures") or ["(none)"])[0]
    if architecture in CLASSIFIERS:
        layout = CLASSIFIERS[architecture]
        encoder = _encoder_spec(config, layout)
        head: ClassifierSpec | EmbeddingSpec = _classifier_spec(config, layout)
        limit = _tokenizer_limit(directory, encoder)
    elif architecture in ENCODERS:
        encoder = _encoder_spec(config, ENCODERS[architecture])
        head, limit = _embedding_spec(directory, encoder)
    else:
        known = ", ".join(sorted(CLASSIFIERS | ENCODERS))
        raise UnsupportedCheckpoint(
            f"config.json names the architecture {architecture!r}, which this version does not serve. "
            f"Served architectures: {known}"
        )
    return ModelSpec(architecture, encoder, head, limit)


def _read_json(path: Path, kind: type = dict) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnsupportedCheckpoint(f"{path.name} is missing in {path.parent}") from None
    except (ValueError, OSError) as error:
        raise UnsupportedCheckpoint(f"{path} cannot be read: {error}") from error
    if not isinstance(content, kind):
        raise UnsupportedCheckpoint(f"{path} holds a {type(content).__name__}, not a {kind.__name__}")
    return content


def _encoder_spec(config: dict[str, Any], layout: str) -> EncoderSpec:
    position_type = config.get("position_embedding_type", "absolute")
    if position_type != "absolute":
        raise UnsupportedCheckpoint(
            f"position_embedding_type {position_type!r} is not served, only 'absolute'"
        )
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise UnsupportedCheckpoint(
            "the checkpoint is configured as a decoder; its attention would be causal"
        )
    try:
        pad = config.get("pad_token_id", 0 if layout == "bert" else 1)
        _check_numbers(config, pad)
        return EncoderSpec(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            intermediate_size=config["intermediate_size"],
            hidden_act=config.get("hidden_act", "gelu"),
            layer_norm_eps=config.get("layer_norm_eps", 1e-12),
            position_rows=config["max_position_embeddings"],
            position_offset=0 if layout == "bert" else pad + 1,
            type_rows=config["type_vocab_size"],
            pad_token_id=pad,
        )
    except KeyError as missing:
        raise UnsupportedCheckpoint(f"config.json lacks {missing.args[0]!r}") from None


def _check_numbers(config: dict[str, Any], pad: Any) -> None:
    """Refuse sizes that would fail only when the first text comes."""
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    for name in (*sizes, "max_position_embeddings", "type_vocab_size"):
        if type(config[name]) is not int or config[name] < 1:
            raise UnsupportedCheckpoint(
                f"config.json: {name} is {config[name]!r}, not a whole number above 0"
            )
    if config["hidden_size"] % config["num_attention_heads"]:
        raise UnsupportedCheckpoint("config.json: hidden_size is not a multiple of num_attention_heads")
    if type(pad) is not int or not 0 <= pad < config["vocab_size"]:
        raise UnsupportedCheckpoint(f"config.json: pad_token_id is {pad!r}, not a row of the embedding table")
    if type(config.get("layer_norm_eps", 1e-12)) not in (int, float):
        raise UnsupportedCheckpoint(
            f"config.json: layer_norm_eps is {config['layer_norm_eps']!r}, not a number"
        )


def _classifier_spec(config: dict[str, Any], layout: Literal["bert", "roberta"]) -> ClassifierSpec:
    labels = config.get("num_labels") or len(config.get("id2label") or {0: "", 1: ""})
    if labels != 1:
        raise UnsupportedCheckpoint(f"the classifier has {labels} labels; a reranker has exactly one")
    return ClassifierSpec(layout, _activation(config))


def _activation(config: dict[str, Any]) -> Activation:
    """Which function turns the logit into the score.

    The rule of sentence-transformers: `sentence_transformers.activation_fn`, else
    `sbert_ce_default_activation_function`, else sigmoid for one label.
    """
    named = (config.get("sentence_transformers") or {}).get("activation_fn")
    named = named or config.get("sbert_ce_default_activation_function")
    if named is None:
        return "sigmoid"
    known: dict[str, Activation] = {"Identity": "identity", "Sigmoid": "sigmoid"}
    name = str(named).rsplit(".", 1)[-1]
    if name not in known:
        raise UnsupportedCheckpoint(f"config.json names the activation {named!r}; served: {', '.join(known)}")
    return known[name]


def _tokenizer_limit(directory: Path, encoder: EncoderSpec) -> int:
    """Tokens per pair: the tokenizer's own limit where it has a real one, never beyond the positions."""
    path = directory / "tokenizer_config.json"
    named = _read_json(path).get("model_max_length") if path.exists() else None
    # transformers writes int(1e30) for "no limit"
    if isinstance(named, int | float) and 0 < named < 1e9:
        return min(int(named), encoder.max_length)
    return encoder.max_length


def _embedding_spec(directory: Path, encoder: EncoderSpec) -> tuple[EmbeddingSpec, int]:
    """An encoder without classifier: our own `sie_scorer.json`, or the sentence-transformers layout."""
    scorer = directory / "sie_scorer.json"
    if scorer.exists():
        recipe = _read_json(scorer)
        head = EmbeddingSpec(_pooling(recipe["pooling"]), True, True, float(recipe["dense_weight"]))
        return head, min(int(recipe["max_seq_length"]), encoder.max_length)
    if not (directory / "modules.json").exists():
        raise UnsupportedCheckpoint(
            "the checkpoint is an encoder without a head (no classifier, no modules.json): it can neither score "
            "nor embed. A classifier that is not in the checkpoint is never made up"
        )
    return _sentence_transformers_spec(directory, encoder)


def _sentence_transformers_spec(directory: Path, encoder: EncoderSpec) -> tuple[EmbeddingSpec, int]:
    pooling: Pooling | None = None
    normalize = False
    for module in _read_json(directory / "modules.json", list):
        try:
            name, folder = str(module["type"]), directory / module["path"]
        except (KeyError, TypeError) as error:
            raise UnsupportedCheckpoint(
                f"modules.json has an entry without type and path: {error!r}"
            ) from error
        kind = name.rsplit(".", 1)[-1]
        if kind == "Pooling":
            pooling = _pooling_module(_read_json(folder / "config.json"))
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise UnsupportedCheckpoint(f"modules.json names {name!r}, which this version does not serve")
    if pooling is None:
        raise UnsupportedCheckpoint("modules.json has no Pooling module")
    limits = directory / "sentence_bert_config.json"
    limit = _read_json(limits).get("max_seq_length") if limits.exists() else None
    return EmbeddingSpec(pooling, normalize), min(limit or encoder.max_length, encoder.max_length)


def _pooling_module(config: dict[str, Any]) -> Pooling:
    """Newer files name the mode (`pooling_mode: mean`), older ones switch it on (`pooling_mode_mean_tokens: true`)."""
    on = [
        key.removeprefix("pooling_mode_")
        for key, value in config.items()
        if value is True and "_mode_" in key
    ]
    name = str(config.get("pooling_mode") or "+".join(on))
    return _pooling(name.removesuffix("_tokens").removesuffix("_token"))


def _pooling(name: str) -> Pooling:
    if name == "cls" or name == "mean":
        return name  # type: ignore[return-value]
    raise UnsupportedCheckpoint(f"pooling {name!r} is not served; served: cls, mean")
