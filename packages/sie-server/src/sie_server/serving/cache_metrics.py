"""The document cache's counters, in the form Prometheus scrapes."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sie_server.engine.document_cache import DocumentCache


class CacheCollector(Collector):
    """Reads the counters when asked; the cache itself knows nothing of metrics."""

    def __init__(self, cache: DocumentCache) -> None:
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        """sie_document_cache_{hits,misses,evictions}_total and sie_document_cache_bytes."""
        cache = self._cache
        counts = {
            "hits": ("Documents whose token vectors were there already", cache.hits),
            "misses": ("Documents that had to be read", cache.misses),
            "evictions": ("Documents dropped to stay within document_cache_mb", cache.evictions),
        }
        for name, (text, value) in counts.items():
            yield CounterMetricFamily(f"sie_document_cache_{name}", text, value)
        yield GaugeMetricFamily("sie_document_cache_bytes", "Memory of the document cache", cache.nbytes)
