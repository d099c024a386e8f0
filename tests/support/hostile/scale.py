"""Counts and limits of tests/hostile: short in `make test`, long in `make hostile` (SIE_HOSTILE=long).

SIE_HOSTILE_SLACK multiplies the limits on time, for a machine that other programs use. The short form has three
workers on two cores, so its default is 8; the long form runs alone, and its default is 1.
"""

from __future__ import annotations

import os

LONG = os.environ.get("SIE_HOSTILE") == "long"
SLACK = float(os.environ.get("SIE_HOSTILE_SLACK") or (1 if LONG else 8))

MIB = 2**20
ANSWER_S = 1.0 * SLACK  # longest time until /healthz or a small request is answered
MEDIAN_S = 0.25 * SLACK
BYTES_MULTIPLE = 2  # resident memory above rest, as a multiple of the bytes that the attack holds
# Added by the allocator, the probe's small requests, and the objects of many tiny documents (about 600 bytes each).
NOISE = 64 * MIB
REST_SHARE = 1.15  # resident memory after the attack, as a multiple of that before it
SUM_SHARE = 1.4  # resident memory after all attacks, as a multiple of that before the first
REST_S = 60.0 if LONG else 15.0
STALL_S = 45.0  # an answer that takes longer counts as a stall; the server waits 30 s for a body


def scaled(short: int, long: int) -> int:
    """Return the count for this run."""
    return long if LONG else short


HOLD_S = 10.0 if LONG else 0.5  # seconds that an attack lasts at least
ALLOWED_S = scaled(20, 120)  # seconds after which a hung attack is given up
