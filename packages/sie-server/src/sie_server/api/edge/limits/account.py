"""The account of one API key: its usage since the start, and whether it may do more.

The limits hold per process. An ingress that forwards requests uses the same accounts. It learns the tokens from the
answer, so they are charged when the request leaves.

Tokens are known only after tokenising, so `enter` lets a request pass while the bucket has any, and the request that
empties it may go into debt. A later request waits until the debt is repaid. The debt is less than one quota, because
no single request may have more tokens than the quota, and `charge` refuses while there is a debt. Refusing what
does not fit exactly would starve large requests, whose room smaller ones would always take, and would waste the work
of tokenising.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable

from sie_server.api.edge.limits.bucket import Bucket
from sie_server.errors import RateLimited
from sie_server.keys import ApiKey
from sie_server.wire import KeyRefusals, KeyUsage

BUSY_S = 1.0  # until a request in progress may have ended
WINDOW_S = 60  # of tokens_per_minute
REFUSALS_PER_S = 20  # of one key that are answered at once
MOST_DELAY_S = 1.0


class Account:
    """The requests and tokens of one key. Times are those of one clock, in seconds."""

    def __init__(self, key: ApiKey, jitter: Callable[[], float] = random.random) -> None:
        """`jitter` returns numbers in [0, 1)."""
        self.key, self.limits = key, key.limits
        self.answered: Counter[str] = Counter()  # by class of the status, 2xx
        self.refused: Counter[str] = Counter()  # by reason, the fields of KeyRefusals
        self.tokens = self.in_progress = 0
        self._jitter = jitter
        self._refusals = Bucket(REFUSALS_PER_S, REFUSALS_PER_S)
        rate, quota = self.limits.requests_per_second, self.limits.tokens_per_minute
        self.request_bucket = Bucket(rate, self.limits.burst or max(1, math.ceil(rate))) if rate else None
        self.token_bucket = Bucket(quota / WINDOW_S, quota) if quota else None

    def enter(self, now: float) -> Visit:
        """Count a request that begins. A refused request costs nothing.

        Raises:
            RateLimited: the key has reached a limit.
        """
        most = self.limits.concurrent_requests
        try:
            if most is not None and self.in_progress >= most:
                raise self._refusal("concurrent", f"concurrent_requests = {most}", BUSY_S)
            if self.request_bucket and (wait := self.request_bucket.wait_s(1, now)):
                limit = f"requests_per_second = {self.limits.requests_per_second:g}"
                raise self._refusal("requests", limit, wait)
            self.check_tokens(now)
        except RateLimited as error:
            self.count(error.status)
            raise
        if self.request_bucket:
            self.request_bucket.spend(1, now)
        self.in_progress += 1
        return Visit(self)

    def check_tokens(self, now: float) -> None:
        """Raise RateLimited while there are no tokens."""
        if self.token_bucket and (wait := self.token_bucket.wait_s(1, now)):
            raise self._refusal("tokens", f"tokens_per_minute = {self.limits.tokens_per_minute}", wait)

    def can_never_serve(self, tokens: int) -> bool:
        """Return whether a request has more tokens than the whole quota; such a request is not run."""
        quota = self.limits.tokens_per_minute
        return quota is not None and tokens > quota

    def spend(self, tokens: int, now: float) -> None:
        """Take tokens from the quota, also those that it does not have."""
        self.tokens += tokens
        if self.token_bucket:
            self.token_bucket.spend(tokens, now)

    def count(self, status: int) -> None:
        """Count a request that has been answered."""
        self.answered[f"{status // 100}xx"] += 1

    def refusal_delay_s(self, now: float) -> float:
        """Return how long the answer to a refused request waits.

        Refusals take processor time from the requests of other keys, so a loop without a pause is slowed down.
        """
        wait = min(MOST_DELAY_S, self._refusals.wait_s(1, now))
        if wait < MOST_DELAY_S:
            self._refusals.spend(1, now)
        return wait

    def _refusal(self, reason: str, limit: str, wait_s: float) -> RateLimited:
        """Return the error. A random part of Retry-After keeps clients that wait from returning together."""
        self.refused[reason] += 1
        return RateLimited(
            f"the API key {self.key.name!r} has reached its limit {limit}; wait for the seconds in "
            "Retry-After, or ask the server's operator for a higher limit",
            retry_after_s=wait_s + self._jitter() * (1 + wait_s / 2),
        )

    def usage(self, now: float) -> KeyUsage:
        """Return the counters and what is left of the limits."""
        return KeyUsage(
            name=self.key.name,
            scopes=sorted(self.key.scopes),
            requests=self.answered.total() + self.in_progress,
            tokens=self.tokens,
            refused=KeyRefusals(**self.refused),
            in_progress=self.in_progress,
            requests_left=_rest(self.request_bucket, now),
            tokens_left=_rest(self.token_bucket, now),
            limits=self.limits,
        )


def _rest(bucket: Bucket | None, now: float) -> int | None:
    return math.floor(bucket.left(now)) if bucket else None


class Visit:
    """One request of an account, between `Account.enter` and `leave`."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self._charged = 0

    def charge(self, tokens: int, now: float) -> None:
        """Charge the tokens of the request before the model reads them.

        Raises:
            RateLimited: another request has used up the quota since this one entered.
        """
        self.account.check_tokens(now)
        self.account.spend(tokens, now)
        self._charged += tokens

    def leave(self, status: int, tokens: int, now: float) -> None:
        """End the request. Tokens that have not been charged are charged now, unless they were too many to be read."""
        self.account.in_progress -= 1
        self.account.count(status)
        if status >= 400 and self.account.can_never_serve(tokens):
            self.account.refused["too_large"] += 1
        else:
            self.account.spend(max(0, tokens - self._charged), now)


class Accounts:
    """The accounts of all keys of a server; their number never changes."""

    def __init__(self, keys: Iterable[ApiKey], clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.by_name = {key.name: Account(key) for key in keys}

    def usage(self) -> list[KeyUsage]:
        """Return the usage of every key, in the order of the configuration."""
        return [account.usage(self.clock()) for account in self.by_name.values()]
