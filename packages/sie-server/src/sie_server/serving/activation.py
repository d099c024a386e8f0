"""Logit → score. Without torch, because dialects apply the sigmoid too."""

from __future__ import annotations

import math


def activate(logit: float, activation: str) -> float:
    """Return the score of a logit: the logit itself, or its sigmoid."""
    if activation == "identity":
        return logit
    # Both branches compute the same function; each one cannot overflow on its side.
    return 1.0 / (1.0 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1.0 + math.exp(logit))
