"""The metrics of the ingress, and the metrics of all replicas as one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


class ClusterMetrics:
    """Counters of the calls that the ingress repeats."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.reruns = Counter(
            "sie_reruns", "Calls repeated because their replica died", ["pool"], registry=registry
        )
        self.stale = Counter(
            "sie_stale_parts", "Requests scored in parts and repeated because of a swap", registry=registry
        )


class Merged(Collector):
    """The pages of several processes, with the label `replica`."""

    def __init__(self, pages: Mapping[str, bytes]) -> None:
        self._pages = pages

    def collect(self) -> Iterator[Metric]:
        """Every family once, with the samples of all processes."""
        families: dict[str, Metric] = {}
        for replica, page in self._pages.items():
            for family in text_string_to_metric_families(page.decode()):
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                merged.samples += [
                    one._replace(labels={**one.labels, "replica": replica}) for one in family.samples
                ]
        yield from families.values()


def merged(pages: Mapping[str, bytes]) -> bytes:
    """Return one page of the pages by replica."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Merged(pages))
    return generate_latest(registry)
