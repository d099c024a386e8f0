"""Counts the calls that the ingress replicas repeat, also of those that are killed later."""

from __future__ import annotations

import re

SAMPLE = re.compile(r'sie_reruns_total\{.*replica="(\w+)".*\} (\S+)')


class Reruns:
    """The largest value that each ingress replica has shown. Counts since the last look are lost with a replica."""

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}

    def look(self, page: str) -> None:
        """Read a page of metrics."""
        for replica, value in SAMPLE.findall(page):
            self._seen[replica] = max(self._seen.get(replica, 0.0), float(value))

    @property
    def total(self) -> int:
        return int(sum(self._seen.values()))
