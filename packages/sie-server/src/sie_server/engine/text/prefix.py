"""What the prompts of one request have in common at their start: found once, put through the model once.

Scores are those of the whole prompts: in causal attention nothing before the document can depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from sie_server.models.batch import PackedBatch, Prefix, Tokens
from sie_server.models.families.decoders.decoder import Decoder
from sie_server.models.layers.adapted import applied
from sie_server.models.lora import Changes

# A shared start costs a pass of its own and attention with masks; it is taken when it saves at least this share of
# the request's tokens.
WORTHWHILE = 0.1


def share_prefix(sequences: Sequence[Tokens]) -> tuple[Prefix | None, list[Tokens]]:
    """The longest common start of all sequences, and what is left of each: at least its last token."""
    common = _common_start(sequences)
    saved, total = common * (len(sequences) - 1), sum(map(len, sequences))
    if not saved or saved < WORTHWHILE * total:
        return None, list(sequences)
    own = [tokens.ids[common:] for tokens in sequences]
    return Prefix(sequences[0].ids[:common].copy()), [Tokens(ids, len(ids)) for ids in own]


def compute_prefixes(
    decoder: Decoder,
    prefixes: Iterable[tuple[Prefix | None, Changes | None]],
    pack: Callable[[list[Tokens], list[Changes | None]], PackedBatch],
) -> None:
    """Put those `prefixes` through the model that have not been yet, each under its adapter, and keep their states.

    They are of jobs of one depth, and `pack` knows it.
    """
    missing = [(prefix, under) for prefix, under in prefixes if prefix and not prefix.layers]
    if not missing:
        return
    batch = pack([Tokens(prefix.ids, len(prefix)) for prefix, _ in missing], [under for _, under in missing])
    with applied(batch):
        states = decoder.prefix_states(batch)
    for place, own in zip(batch.order, states, strict=True):
        missing[place][0].layers = own


def _common_start(sequences: Sequence[Tokens]) -> int:
    """Tokens, one less than the shortest sequence at most: the read-out token is always a sequence's own."""
    first = sequences[0].ids
    common = min(map(len, sequences)) - 1
    for tokens in sequences[1:]:
        differs = np.flatnonzero(first[:common] != tokens.ids[:common])
        common = int(differs[0]) if len(differs) else common
    return common
