"""Metrics that are read at scrape time: the document cache, and the memory of models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sie_server.engine.document_cache import DocumentCache
from sie_server.wire import ModelInfo


class CacheCollector(Collector):
    """Reads the counters of the cache, which itself knows nothing of metrics."""

    def __init__(self, cache: DocumentCache) -> None:
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        """sie_document_cache_{hits,misses,evictions}_total and sie_document_cache_bytes."""
        cache = self._cache
        counts = {
            "hits": ("Documents whose token vectors were cached", cache.hits),
            "misses": ("Documents that were not cached", cache.misses),
            "evictions": ("Documents dropped to stay within document_cache_mb", cache.evictions),
        }
        for name, (text, value) in counts.items():
            yield CounterMetricFamily(f"sie_document_cache_{name}", text, value)
        yield GaugeMetricFamily("sie_document_cache_bytes", "Memory of the document cache", cache.nbytes)


class HoldsBytes(Protocol):
    """The buffer of requests, which itself knows nothing of metrics."""

    nbytes: int


class ReplayCollector(Collector):
    """Reads the size of the buffer of requests."""

    def __init__(self, buffer: HoldsBytes) -> None:
        self._buffer = buffer

    def collect(self) -> Iterator[Metric]:
        """sie_replay_buffer_bytes."""
        text = "Memory of the requests that are kept for replay"
        yield GaugeMetricFamily("sie_replay_buffer_bytes", text, self._buffer.nbytes)


class ModelCollector(Collector):
    """The loaded models and their memory. A removed model disappears from the metrics."""

    def __init__(self, infos: Callable[[], list[ModelInfo]], budget_bytes: int) -> None:
        self._infos, self._budget = infos, budget_bytes

    def collect(self) -> Iterator[Metric]:
        """sie_model_loaded, sie_model_memory_bytes and sie_memory_budget_bytes."""
        loaded = GaugeMetricFamily("sie_model_loaded", "1 while loaded", labels=["model"])
        memory = GaugeMetricFamily("sie_model_memory_bytes", "Bytes of its tensors", labels=["model"])
        for info in self._infos():
            if info.loaded or info.memory_bytes:
                loaded.add_metric([info.name], float(info.loaded))
                memory.add_metric([info.name], info.memory_bytes)
        yield loaded
        yield memory
        yield GaugeMetricFamily(
            "sie_memory_budget_bytes", "Memory budget of all models, in bytes", self._budget
        )
