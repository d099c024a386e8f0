"""The numbers of a config.json, checked before anything is computed or allocated from them.

A number may be a loop count or the size of a table, so a wrong one may take the process down. The bounds are far
beyond every known model. Fields that are not listed are not read, or only compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sie_server.errors import shown
from sie_server.models.spec import BackboneSpec, UnsupportedCheckpoint

POSITIONS, ROWS = 2**24, 2**24
# whole numbers: field → least and most
COUNTS: dict[str, tuple[int, int]] = {
    "block_ff_dim": (1, 2**20),
    "block_multiple_of": (1, 2**16),
    "conv_L_cache": (1, 1024),
    "dim": (1, 2**17),
    "embedding_size": (1, 2**17),
    "global_attn_every_n_layers": (1, 1000),
    "head_dim": (1, 2**14),
    "hidden_dim": (1, 2**20),
    "hidden_size": (1, 2**17),
    "inner_group_num": (1, 1000),
    "intermediate_size": (1, 2**20),
    "layer_sep": (1, 1000),
    "local_attention": (2, POSITIONS),
    "max_position_embeddings": (1, POSITIONS),
    "max_window_layers": (0, 10_000),
    "n_heads": (1, 2**12),
    "n_layers": (1, 1000),
    "num_attention_heads": (1, 2**12),
    "num_hidden_groups": (1, 1000),
    "num_hidden_layers": (1, 1000),
    "num_key_value_heads": (1, 2**12),
    "original_max_position_embeddings": (1, POSITIONS),
    "pad_token_id": (-1, ROWS),
    "sliding_window": (1, POSITIONS),
    "start_layer": (1, 1000),
    "type_vocab_size": (0, 1024),
    "vocab_size": (1, ROWS),
}
# other numbers: field → a bound that the value exceeds, and the most
AMOUNTS: dict[str, tuple[float, float]] = {
    "attn_logit_softcapping": (0, 1e9),
    "block_ffn_dim_multiplier": (0, 1e3),
    "factor": (0, 1e6),
    "final_logit_softcapping": (0, 1e9),
    "global_rope_theta": (0, 1e15),
    "high_freq_factor": (0, 1e6),
    "layer_norm_eps": (-1e-30, 1),
    "local_rope_theta": (0, 1e15),
    "low_freq_factor": (0, 1e6),
    "norm_eps": (-1e-30, 1),
    "query_pre_attn_scalar": (0, 1e9),
    "rms_norm_eps": (-1e-30, 1),
    "rope_theta": (0, 1e15),
    "rotary_emb_base": (0, 1e15),
    "scale_depth": (0, 1e6),
    "scale_emb": (0, 1e6),
    "temperature": (0, 1e6),
}
# objects whose fields the families read
INNER = (
    "text_config",
    "llm_config",
    "rope_parameters",
    "rope_scaling",
    "full_attention",
    "sliding_attention",
)


def check_numbers(config: Mapping[str, Any], path: str = "config.json: ") -> None:
    """Check every listed field, also inside the objects that the families read; null counts as absent.

    Raises:
        UnsupportedCheckpoint: a number has the wrong type or is out of bounds; the message names the field.
    """
    for name, value in config.items():
        if value is None:
            continue
        if name in COUNTS:
            least, most = COUNTS[name]
            if type(value) is not int or not least <= value <= most:
                raise _refused(path, name, value, f"expected a whole number from {least} to {most}")
        elif name in AMOUNTS:
            above, most_amount = AMOUNTS[name]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not above < value <= most_amount:
                raise _refused(
                    path, name, value, f"expected a number above {max(0, above):g}, at most {most_amount:g}"
                )
        elif name in INNER and isinstance(value, dict):
            check_numbers(value, f"{path}{name}.")


def check_backbone(spec: BackboneSpec) -> None:
    """Check that the numbers fit each other, so that no request fails because of the configuration.

    Raises:
        UnsupportedCheckpoint: two numbers do not fit; the message names them.
    """
    for field in fields(spec):
        value = getattr(spec, field.name)
        if field.type == "int" and type(value) is not int:
            raise UnsupportedCheckpoint(
                f"config.json: the value for {field.name} is {shown(value)}; expected a whole number"
            )
    heads = getattr(spec, "num_heads", 1)
    groups, width = getattr(spec, "num_kv_heads", heads), getattr(spec, "head_dim", None)
    if spec.max_length < 1:
        raise UnsupportedCheckpoint("config.json: max_position_embeddings leaves no position for a token")
    if not 0 <= spec.pad_token_id < spec.vocab_size:
        raise UnsupportedCheckpoint(
            f"config.json: pad_token_id is {spec.pad_token_id!r}; expected a row of the embedding table"
        )
    if width is None and spec.hidden_size % heads:
        raise UnsupportedCheckpoint("config.json: hidden_size is not a multiple of num_attention_heads")
    if heads % groups:
        raise UnsupportedCheckpoint(
            "config.json: num_attention_heads is not a multiple of num_key_value_heads"
        )
    rotary = any(getattr(spec, name, None) for name in ("rope", "thetas", "frequencies"))
    if rotary and (width or spec.hidden_size // heads) % 2:
        raise UnsupportedCheckpoint(
            "config.json: the width of a head is odd, but its dimensions rotate in pairs"
        )


def whole_number(
    config: Mapping[str, Any], name: str, file: str, least: int = 1, most: int = POSITIONS
) -> int | None:
    """Return a whole number of any configuration file within bounds; None where it is absent or null.

    Raises:
        UnsupportedCheckpoint: it has another type or is out of bounds.
    """
    value = config.get(name)
    if value is None:
        return None
    if type(value) is not int or not least <= value <= most:
        raise _refused(f"{file}: ", name, value, f"expected a whole number from {least} to {most}")
    return value


def _refused(path: str, name: str, value: Any, why: str) -> UnsupportedCheckpoint:
    return UnsupportedCheckpoint(f"{path}{name} is {value!r:.80}; {why}")
