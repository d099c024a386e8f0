"""`adapter_config.json` of a PEFT adapter (https://huggingface.co/docs/peft), read strictly.

Every field is either read here, known to matter only in training, or required to be off; otherwise the adapter is
refused. The matching rules are those of PEFT 0.21 (`check_target_module_exists`, `get_pattern_key`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sie_server.engine.lora.patterns import Pattern, Patterns
from sie_server.models.spec import UnsupportedCheckpoint, read_json

CONFIG = "adapter_config.json"
# fields that matter only in training, or belong to other fields that must be off
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
WHY = {  # fields that must be off, with the reason
    "use_dora": "DoRA normalises the base weights, which are never changed here",
    "fan_in_fan_out": "the weights of served models are stored transposed",
    "trainable_token_indices": "retrained embeddings are not supported",
    "layer_replication": "this makes a model with other layers: merge the adapter and serve the merged model",
}
# How PEFT wraps the expressions of a field that must match from the start of a module name
PER_MODULE = r"(.*\.)?({})$"
RETRAINED = r"(^|.*\.){}($|\..*)"
LAYER = r"(?:^|.*?\.){}\.(?P<idx>\d+)\."
ANY_LAYER = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")
MOST_RANK, MOST_ENTRIES = 2**16, 5000
Values = list[tuple[Pattern, float]]  # the first match counts
Names = Pattern | list[str]  # module names or their last parts


@dataclass(frozen=True)
class LoraConfig:
    """Which modules an adapter changes, and how strongly."""

    base: str | None  # the model it was trained on: a hub id or a path
    rank: int
    alpha: float
    ranks: Values
    alphas: Values
    root_scaled: bool  # rsLoRA: alpha / √rank
    bias: str  # none, all, lora_only
    targets: Names
    excluded: Names
    layers: list[int] | None  # None: all
    layers_pattern: list[Pattern]  # the part before a layer number; empty: any
    retrained: list[Pattern]  # `modules_to_save`

    def rank_of(self, module: str) -> int:
        """Return the rank for a module."""
        return int(_of_pattern(self.ranks, module, self.rank))

    def scale_of(self, module: str) -> float:
        """Return the factor of B · A for a module."""
        rank, alpha = self.rank_of(module), _of_pattern(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.root_scaled else rank)

    def retrains(self, module: str) -> bool:
        """Return whether the adapter has full weights for the module."""
        return any(pattern.match(module) for pattern in self.retrained)

    def changes(self, module: str) -> bool:
        """Return whether the adapter has a low-rank product for the module, if it is a linear layer."""
        if _named(self.excluded, module) or self.retrains(module):
            return False
        if not _named(self.targets, module):
            return False
        return isinstance(self.targets, Pattern) or self.layers is None or _layer(self, module) in self.layers


def _of_pattern(values: Values, module: str, default: float) -> float:
    return next((value for pattern, value in values if pattern.match(module)), default)


def _named(names: Names, module: str) -> bool:
    if isinstance(names, Pattern):
        return names.fullmatch(module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _layer(config: LoraConfig, module: str) -> int | None:
    patterns: Sequence[Pattern | re.Pattern[str]] = config.layers_pattern or [ANY_LAYER]
    found = next((match for pattern in patterns if (match := pattern.match(module))), None)
    return int(found["idx"]) if found else None


def read_lora_config(directory: Path) -> LoraConfig:
    """Read the configuration in a directory saved by PEFT.

    Raises:
        UnsupportedCheckpoint: it is missing, unreadable, or needs an unsupported feature.
    """
    fields = dict(read_json(directory / CONFIG))
    kind = fields.pop("peft_type", None)
    if kind != "LORA":
        raise _refused("peft_type", kind, "only LORA is supported")
    start = fields.pop("init_lora_weights", None)
    if start not in PLAIN_STARTS:
        why = "this changes the base weights: save the adapter with path_initial_model_for_weight_conversion"
        raise _refused("init_lora_weights", start, why)
    config = _config(fields)
    _check_ranks(config)
    for name, value in fields.items():
        if name not in IGNORED and value not in (None, False, {}, [], ""):
            raise _refused(name, value, WHY.get(name, "this version does not support it"))
    return config


def _config(fields: dict[str, Any]) -> LoraConfig:
    """Remove the supported fields from `fields` and build the configuration."""
    patterns = Patterns(CONFIG)
    indices = _checked(fields, "layers_to_transform", int | list, None)
    before = _checked(fields, "layers_pattern", str | list, [])
    return LoraConfig(
        base=_checked(fields, "base_model_name_or_path", str, None),
        rank=_checked(fields, "r", int, 8),
        alpha=_checked(fields, "lora_alpha", int | float, 8),
        ranks=_values(fields, "rank_pattern", patterns),
        alphas=_values(fields, "alpha_pattern", patterns),
        root_scaled=_checked(fields, "use_rslora", bool, False),
        bias=_checked(fields, "bias", str, "none"),
        targets=_names(fields, "target_modules", patterns),
        excluded=_names(fields, "exclude_modules", patterns),
        layers=[indices] if isinstance(indices, int) else indices or None,
        layers_pattern=[
            patterns.compile("layers_pattern", part, LAYER)
            for part in ([before] if isinstance(before, str) and before else before)
        ],
        retrained=[
            patterns.compile("modules_to_save", name, RETRAINED)
            for name in _checked(fields, "modules_to_save", list, [])
        ],
    )


def _values(fields: dict[str, Any], name: str, patterns: Patterns) -> Values:
    given = _checked(fields, name, dict, {})
    return [(patterns.compile(name, text, PER_MODULE), value) for text, value in given.items()]


def _names(fields: dict[str, Any], name: str, patterns: Patterns) -> Names:
    given: str | list[str] = _checked(fields, name, str | list, [])
    return patterns.compile(name, given) if isinstance(given, str) else given


def _checked(fields: dict[str, Any], name: str, kind: Any, default: Any) -> Any:
    """Remove a field and check its type; null counts as absent."""
    value = fields.pop(name, None)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _refused(name, value, f"expected {_type_name(kind)}")
    if isinstance(value, list | dict) and len(value) > MOST_ENTRIES:
        raise _refused(name, f"{len(value)} entries long", f"at most {MOST_ENTRIES} are supported")
    item = int if name == "layers_to_transform" else str
    if isinstance(value, list) and not all(type(part) is item for part in value):
        raise _refused(name, value, f"its entries must be {item.__name__}")
    return value


def _type_name(kind: Any) -> str:
    """Return `int` for int, `str | list` for str | list."""
    return getattr(kind, "__name__", str(kind))


def _check_ranks(config: LoraConfig) -> None:
    if config.bias not in ("none", "all", "lora_only"):
        raise _refused("bias", config.bias, "expected none, all or lora_only")
    for name, ranks in (("r", [config.rank]), ("rank_pattern", [rank for _, rank in config.ranks])):
        for rank in ranks:
            if type(rank) is not int or not 1 <= rank <= MOST_RANK:
                raise _refused(name, rank, f"a rank must be an integer above 0, at most {MOST_RANK}")
    for name, alphas in (
        ("lora_alpha", [config.alpha]),
        ("alpha_pattern", [alpha for _, alpha in config.alphas]),
    ):
        for alpha in alphas:
            if not _finite(alpha):
                raise _refused(name, alpha, "an alpha must be a finite number")


def _finite(value: Any) -> bool:
    """Return whether `value` is a finite number; Python's JSON also has NaN, Infinity and integers of any size."""
    try:
        return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


def _refused(name: str, value: Any, why: str) -> UnsupportedCheckpoint:
    return UnsupportedCheckpoint(f"{CONFIG}: {name} is {value!r:.100}; {why}")
