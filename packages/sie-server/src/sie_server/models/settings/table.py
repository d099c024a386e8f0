"""The table of keys: file or module → key → its effect. `keys.yaml` has the data and the meaning of its fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sie_server.files import read_yaml

Effect = Literal["honoured", "refused", "none"]
# Keys that sentence-transformers may pass on to transformers without an effect on scores
HARMLESS = frozenset(
    {
        "attn_implementation",
        "device_map",
        "dtype",
        "low_cpu_mem_usage",
        "padding_side",
        "revision",
        "torch_dtype",
        "trust_remote_code",
        "use_cache",
        "use_fast",
        "use_safetensors",
    }
)


@dataclass(frozen=True)
class Key:
    """One key of a file: its effect on scores, and why or under which test."""

    effect: Effect
    note: str  # the reason, or for a honoured key its group
    test: str = ""  # the test file that compares a honoured key with the library
    accepts: tuple[Any, ...] | None = None  # of a refused key; None: something else decides
    harmless: bool = False  # a refused object is accepted with the keys of `HARMLESS` only
    example: Any = None  # a refused value
    says: str = ""  # a word of the message, where it does not name the key
    family: str = ""  # the checkpoint that the example is tried on

    def refuses(self, value: Any) -> bool:
        """Return whether the table refuses the value."""
        if self.harmless:
            return value is not None and not (isinstance(value, dict) and value.keys() <= HARMLESS)
        return self.accepts is not None and value not in self.accepts


@cache
def settings_table() -> Mapping[str, Mapping[str, Key]]:
    """Return the table: file or module type → key → effect."""
    content = read_yaml(Path(__file__).with_name("keys.yaml"))
    return {name: _keys(groups) for name, groups in content.items()}


def _keys(groups: dict[str, Any]) -> dict[str, Key]:
    found: dict[str, Key] = {}
    for group, entry in groups["honoured"].items():
        found |= {key: Key("honoured", group, test=entry["test"]) for key in entry["keys"]}
    for key, entry in groups["refused"].items():
        found[key] = Key(
            "refused",
            entry["reason"],
            accepts=tuple(entry["accepts"]) if "accepts" in entry else None,
            harmless=entry.get("harmless", False),
            example=entry["example"],
            says=entry.get("says", ""),
            family=entry["family"],
        )
    for reason, keys in groups["none"].items():
        found |= {key: Key("none", reason) for key in keys}
    return found


def counts() -> dict[str, int]:
    """Return how many keys are honoured, refused and without effect."""
    effects = [key.effect for keys in settings_table().values() for key in keys.values()]
    return {effect: effects.count(effect) for effect in ("honoured", "refused", "none")}
