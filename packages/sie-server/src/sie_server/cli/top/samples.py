"""Figures between two scrapes of `/metrics`: rates, means and quantiles."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

Series = dict[str, str]  # labels


@dataclass(frozen=True)
class Scrape:
    """The samples of one moment, in seconds of any clock that never goes back."""

    at: float
    samples: dict[str, list[tuple[Series, float]]]

    @classmethod
    def of(cls, text: str, at: float) -> Scrape:
        """Parse the Prometheus text format.

        Raises:
            ValueError: the text has another format, or is not that of a SIE server.
        """
        from prometheus_client.parser import text_string_to_metric_families

        samples: dict[str, list[tuple[Series, float]]] = defaultdict(list)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples[sample.name].append((sample.labels, sample.value))
        if "sie_build_info" not in samples:
            raise ValueError("there is no sie_build_info")
        return cls(at, dict(samples))

    def sum(self, name: str, **labels: str) -> float:
        """Return the sum of all series of a metric with these labels; 0 if there is none."""
        return math.fsum(
            value
            for own, value in self.samples.get(name, ())
            if all(own.get(k) == v for k, v in labels.items())
        )

    def values_of(self, name: str, label: str) -> list[str]:
        """Return the values of a label, sorted."""
        return sorted({own[label] for own, _ in self.samples.get(name, ()) if label in own})


@dataclass(frozen=True)
class Between:
    """The time between two scrapes of the same server."""

    before: Scrape
    now: Scrape

    @property
    def seconds(self) -> float:
        return max(self.now.at - self.before.at, 1e-9)

    def increase(self, name: str, **labels: str) -> float:
        """Return by how much counters have grown; after a restart of the server, since that."""
        before, now = self.before.sum(name, **labels), self.now.sum(name, **labels)
        return now - before if now >= before else now

    def rate(self, name: str, **labels: str) -> float:
        """Return the growth of counters per second."""
        return self.increase(name, **labels) / self.seconds

    def ratio(self, part: str, whole: Iterable[str]) -> float | None:
        """Return the growth of one counter as a share of that of several; None if these have not grown."""
        total = math.fsum(self.increase(name) for name in whole)
        return self.increase(part) / total if total else None

    def mean(self, histogram: str) -> float | None:
        """Return the mean of the values that a histogram has received; None: it has received none."""
        return self.ratio(f"{histogram}_sum", [f"{histogram}_count"])

    def quantile(self, share: float, histogram: str, **labels: str) -> float | None:
        """Return a quantile of the values that a histogram has received; None: it has received none.

        Inside a bucket, values count as evenly distributed, and the last finite bound is the largest answer, as in
        Prometheus' `histogram_quantile`.
        """
        name = f"{histogram}_bucket"
        bounds = sorted(self.now.values_of(name, "le"), key=float)
        counts = [self.increase(name, **labels, le=bound) for bound in bounds]
        if not counts or not counts[-1]:
            return None
        rank = share * counts[-1]
        place = next(i for i, count in enumerate(counts) if count >= rank)
        if math.isinf(float(bounds[place])):
            return float(bounds[place - 1]) if place else None
        low, below = (float(bounds[place - 1]), counts[place - 1]) if place else (0.0, 0.0)
        inside = counts[place] - below
        return low + (float(bounds[place]) - low) * ((rank - below) / inside if inside else 1.0)
