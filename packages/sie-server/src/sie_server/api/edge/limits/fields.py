"""The header fields RateLimit-Policy and RateLimit: the limits of a client, and what is left of them.

Source: draft-ietf-httpapi-ratelimit-headers-11 (May 2026). Both are lists of structured fields (RFC 9651). A policy has
the quota `q`, its unit `qu` (default: requests) and the window `w` in seconds. A limit has the rest `r`, and `t`: the
seconds in which a client can expect no more than `r`. The unit `tokens` is not in the draft.
"""

from __future__ import annotations

import math

from sie_server.api.edge.limits.account import WINDOW_S, Account
from sie_server.api.edge.limits.bucket import Bucket

POLICY, LIMIT = "RateLimit-Policy", "RateLimit"


def fields_of(account: Account, now: float) -> dict[str, str]:
    """Return the fields of a key; none if it has no limits."""
    policies, limits = [], []
    if bucket := account.request_bucket:
        policies.append(f'"requests";q={bucket.capacity:.0f};w={math.ceil(bucket.capacity / bucket.per_s)}')
        limits.append(_left("requests", bucket, now))
    if bucket := account.token_bucket:
        policies.append(f'"tokens";q={bucket.capacity:.0f};qu="tokens";w={WINDOW_S}')
        limits.append(_left("tokens", bucket, now))
    if most := account.limits.concurrent_requests:
        policies.append(f'"concurrent";q={most};qu="concurrent-requests"')
        limits.append(f'"concurrent";r={max(0, most - account.in_progress)}')
    return {POLICY: ", ".join(policies), LIMIT: ", ".join(limits)} if policies else {}


def _left(name: str, bucket: Bucket, now: float) -> str:
    """Return one limit: `t` is the time until the quota is whole again or, if nothing is left, until there is some."""
    left = max(0, math.floor(bucket.left(now)))
    wait = bucket.wait_s(bucket.capacity if left else 1, now)
    return f'"{name}";r={left};t={math.ceil(wait)}'
