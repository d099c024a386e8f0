"""Which replica gets a request, with the knowledge that one ingress process has.

Replicas are tried in the order of a rendezvous hash of model and replica. The first one whose backlog is at most a
bound gets the request, else the one with the smallest backlog. The rule says how a backlog is counted.
"""

from __future__ import annotations

import random
from hashlib import blake2b
from typing import Literal

from bench.scale.replica import Replica

Rule = Literal[
    "round robin", "own requests", "own requests in hash order", "requests", "seconds", "lane seconds"
]


def hash_order(model: str, names: list[str]) -> list[str]:
    """Return replicas in the order in which they get requests for a model.

    D. Thaler and C. Ravishankar, "Using name-based mappings to increase hit rates", 1998.
    """
    return sorted(names, key=lambda name: blake2b(f"{model}\0{name}".encode(), digest_size=8).digest())


class View:
    """The backlogs as one ingress process knows them, for requests of one lane.

    Replicas report them every `every_s` seconds. Between two reports the process adds the work that it sends itself and
    subtracts the time that passes. With 0 it knows the truth. With the rules "own requests" there are no reports: the
    process counts the requests that it has sent and that are not answered, and chooses at random between equal replicas
    or in hash order.
    """

    def __init__(
        self, replicas: list[Replica], rule: Rule, every_s: float, *, bulk: bool, seed: int = 0
    ) -> None:
        """`replicas` are in hash order."""
        self._replicas, self._rule, self._every_s = replicas, rule, every_s
        self._skips_bulk = rule == "lane seconds" and not bulk  # bulk jobs let interactive requests pass
        self._counts_own = rule.startswith("own")
        self._reported = self._seen = -float("inf")  # times
        self._backlogs = [0.0] * len(replicas)
        self._next, self._random = 0, random.Random(seed)

    def choose(self, now: float, bound: float) -> Replica:
        """Return the replica for a request that arrives now. `bound` has the unit of the rule."""
        if self._rule == "round robin":
            self._next = (self._next + 1) % len(self._replicas)
            return self._replicas[self._next]
        if self._rule == "own requests":
            fewest = min(self._backlogs)
            equal = [i for i, backlog in enumerate(self._backlogs) if backlog == fewest]
            return self._replicas[self._random.choice(equal)]
        self._update(now)
        below = (i for i, backlog in enumerate(self._backlogs) if backlog <= bound)
        return self._replicas[next(below, self._backlogs.index(min(self._backlogs)))]

    def sent(self, replica: Replica, seconds: float, *, bulk: bool) -> None:
        """Note work for a replica."""
        if not (bulk and self._skips_bulk):
            self._backlogs[self._replicas.index(replica)] += seconds if "seconds" in self._rule else 1

    def ended(self, replica: Replica) -> None:
        """Note that a replica has finished a part of a request."""
        if self._counts_own:
            self._backlogs[self._replicas.index(replica)] -= 1

    def _update(self, now: float) -> None:
        if self._counts_own:
            return
        if now - self._reported >= self._every_s:
            self._backlogs, self._reported = [self._backlog(replica) for replica in self._replicas], now
        elif self._rule != "requests":
            passed = now - self._seen
            self._backlogs = [max(0.0, backlog - passed) for backlog in self._backlogs]
        self._seen = now

    def _backlog(self, replica: Replica) -> float:
        if self._rule == "requests":
            return replica.requests
        return replica.interactive_backlog_s if self._skips_bulk else replica.backlog_s
