"""The common start of a request's prompts, which passes through the model once.

Scores are those of the whole prompts: under causal attention, nothing before the document depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sie_server.models.batch import Prefix, Tokens

# A shared prefix costs a forward pass of its own and masked attention, so it must save at least this share of the
# request's tokens.
WORTHWHILE = 0.1


def share_prefix(sequences: Sequence[Tokens]) -> tuple[Prefix | None, list[Tokens]]:
    """Return the longest common start of all sequences, and the rest of each: at least its last token."""
    common = _common_start(sequences)
    saved, total = common * (len(sequences) - 1), sum(map(len, sequences))
    if not saved or saved < WORTHWHILE * total:
        return None, list(sequences)
    own = [tokens.ids[common:] for tokens in sequences]
    return Prefix(sequences[0].ids[:common].copy()), [Tokens(ids, len(ids)) for ids in own]


def _common_start(sequences: Sequence[Tokens]) -> int:
    """Return its length, at most the shortest sequence's minus 1: the read-out token is never shared."""
    first = sequences[0].ids
    common = min(map(len, sequences)) - 1
    for tokens in sequences[1:]:
        differs = np.flatnonzero(first[:common] != tokens.ids[:common])
        common = int(differs[0]) if len(differs) else common
    return common
