"""`adapter_config.json` of a PEFT adapter (https://huggingface.co/docs/peft), read strictly.

A field is either read here, or known to matter only in training, or must be off: an adapter that says anything else
is refused. The matching rules are those of PEFT 0.21 (`check_target_module_exists`, `get_pattern_key`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sie_server.models.spec import UnsupportedCheckpoint, read_json

CONFIG = "adapter_config.json"
# of training, or of other fields that must be off themselves
IGNORED = {
    "auto_mapping",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
}
# Initialisations that leave the base weights as they are; others (pissa, olora, corda, loftq, lora_ga) change them
PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
WHY = {  # fields that must be off, and more to say than that
    "use_dora": "DoRA normalises the base weights, so they would have to be written",
    "fan_in_fan_out": "the weights of served models are stored the other way around",
    "trainable_token_indices": "retrained embeddings are not served",
    "layer_replication": "a model with other layers is another model: merge it, and serve the result",
}
Patterns = dict[str, float]
Names = str | list[str]  # a regular expression, or module names and their ends


@dataclass(frozen=True)
class LoraConfig:
    """Which modules an adapter changes, and how strongly."""

    base: str | None  # the model it was trained on: a hub id or a path
    rank: int
    alpha: float
    rank_pattern: Patterns
    alpha_pattern: Patterns
    root_scaled: bool  # rsLoRA: alpha / √rank
    bias: str  # none, all, lora_only
    targets: Names
    excluded: Names | None
    layers: list[int] | None  # only these
    layers_pattern: list[str]  # what stands before a layer's number; none: anything
    retrained: list[str]  # `modules_to_save`

    def rank_of(self, module: str) -> int:
        return int(_of_pattern(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        rank, alpha = self.rank_of(module), _of_pattern(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.root_scaled else rank)

    def retrains(self, module: str) -> bool:
        """Whether the adapter has weights of its own for it."""
        return any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self.retrained)

    def changes(self, module: str) -> bool:
        """Whether the adapter has a low-rank product for it, if it is a linear layer."""
        if (self.excluded and _named(self.excluded, module)) or self.retrains(module):
            return False
        if not _named(self.targets, module):
            return False
        return isinstance(self.targets, str) or self.layers is None or _layer(self, module) in self.layers


def _of_pattern(patterns: Patterns, module: str, default: float) -> float:
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _named(names: Names, module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _layer(config: LoraConfig, module: str) -> int | None:
    if not config.layers_pattern:
        found = re.match(r".*?\.[^.]*\.(?P<index>\d+)\.", module)
        return int(found["index"]) if found else None
    for pattern in config.layers_pattern:
        if found := re.match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", module):
            return int(found["index"])
    return None


def read_lora_config(directory: Path) -> LoraConfig:
    """The configuration in a directory that PEFT has saved.

    Raises:
        UnsupportedCheckpoint: it is missing or unreadable, or asks for something that is not served.
    """
    fields = dict(read_json(directory / CONFIG))
    kind = fields.pop("peft_type", None)
    if kind != "LORA":
        raise _refused("peft_type", kind, "only LORA is served")
    start = fields.pop("init_lora_weights", None)
    if start not in PLAIN_STARTS:
        why = "it changes the base weights: save the adapter with path_initial_model_for_weight_conversion"
        raise _refused("init_lora_weights", start, why)
    indices = _checked(fields, "layers_to_transform", int | list, None)
    pattern = _checked(fields, "layers_pattern", str | list, None)
    try:
        config = LoraConfig(
            base=_checked(fields, "base_model_name_or_path", str, None),
            rank=_checked(fields, "r", int, 8),
            alpha=_checked(fields, "lora_alpha", int | float, 8),
            rank_pattern=_checked(fields, "rank_pattern", dict, {}),
            alpha_pattern=_checked(fields, "alpha_pattern", dict, {}),
            root_scaled=_checked(fields, "use_rslora", bool, False),
            bias=_checked(fields, "bias", str, "none"),
            targets=_checked(fields, "target_modules", str | list, []),
            excluded=_checked(fields, "exclude_modules", str | list, None),
            layers=[indices] if isinstance(indices, int) else indices or None,
            layers_pattern=[pattern] if isinstance(pattern, str) and pattern else list(pattern or []),
            retrained=_checked(fields, "modules_to_save", list, []),
        )
        _check_ranks(config)
    except re.error as error:
        raise UnsupportedCheckpoint(f"{CONFIG}: not a regular expression: {error}") from error
    for name, value in fields.items():
        if name not in IGNORED and value not in (None, False, {}, [], ""):
            raise _refused(name, value, WHY.get(name, "this version does not serve it"))
    return config


def _checked(fields: dict[str, Any], name: str, kind: Any, default: Any) -> Any:
    """Take a field out; null counts as absent."""
    value = fields.pop(name, None)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _refused(name, value, "a value of another type is needed")
    item = int if name == "layers_to_transform" else str
    if isinstance(value, list) and not all(type(part) is item for part in value):
        raise _refused(name, value, "its entries need another type")
    return value


def _check_ranks(config: LoraConfig) -> None:
    if config.bias not in ("none", "all", "lora_only"):
        raise _refused("bias", config.bias, "known are none, all, lora_only")
    for name, ranks in (("r", {"": config.rank}), ("rank_pattern", config.rank_pattern)):
        for rank in ranks.values():
            if type(rank) is not int or rank < 1:
                raise _refused(name, rank, "a rank is a whole number above 0")
    for name, alphas in (("lora_alpha", {"": config.alpha}), ("alpha_pattern", config.alpha_pattern)):
        for alpha in alphas.values():
            if not _finite(alpha):
                raise _refused(name, alpha, "an alpha is a finite number")
    for pattern in (
        *(names for names in (config.targets, config.excluded) if isinstance(names, str)),
        *(*config.rank_pattern, *config.alpha_pattern, *config.retrained, *config.layers_pattern),
    ):
        re.compile(pattern)


def _finite(value: Any) -> bool:
    """JSON as Python reads it has NaN, Infinity and whole numbers of any length."""
    try:
        return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


def _refused(name: str, value: Any, why: str) -> UnsupportedCheckpoint:
    return UnsupportedCheckpoint(f"{CONFIG}: {name} is {value!r:.100}; {why}")
