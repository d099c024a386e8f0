"""Prometheus metrics, and the timing of one request for its headers.

The metrics grow only with the configured models. Routes, stages and status codes are few, and a model that the server
no longer knows loses its series: an id that was removed, or an id that an admin caller named and that never loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from sie_server import __version__
from sie_server.engine.steps import Step, Value
from sie_server.errors import InvalidInput, SIEError, codes
from sie_server.wire import Timing

SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclass
class RequestTiming:
    """One request: when its answer is due, which machines it wants, and its cost in each stage, items and tokens."""

    started: float = field(default_factory=time.perf_counter)
    deadline: float | None = None  # of the same clock as `started`
    tokenization_ms: float = 0.0
    queue_ms: float = 0.0
    inference_ms: float = 0.0
    items: int | None = None  # texts of the request, without the query
    tokens: int | None = None  # read for it
    most_tokens: int | None = None  # of one request of the caller's key
    on_tokens: Callable[[int], None] | None = None  # charges them, or refuses the request
    request_id: str = ""
    pool: str | None = None  # X-SIE-Pool, of a cluster
    machine: str | None = None  # X-SIE-MACHINE-PROFILE, of a cluster
    version: str = ""  # of the weights and the adapter that answered
    steps: list[Step] | None = None  # of a request that is traced

    def set_deadline(self, milliseconds: float) -> None:
        """Set the deadline to so long after the start, unless it is earlier already."""
        deadline = self.started + milliseconds / 1e3
        self.deadline = deadline if self.deadline is None else min(self.deadline, deadline)

    def count_tokens(self, tokens: int) -> None:
        """Note tokens of the request before the model reads them. A cascade has several models.

        The quota is checked for the first of them. The tokens of the others are charged at the end, so that work is
        not thrown away.

        Raises:
            InvalidInput: they can never be served. It is no 429, which clients would send again.
            RateLimited: the caller's key has used up its tokens.
        """
        first, tokens = self.tokens is None, tokens + (self.tokens or 0)
        if self.most_tokens is not None and tokens > self.most_tokens:
            self.tokens = tokens
            raise InvalidInput(
                f"the request has {tokens} tokens, and its API key has tokens_per_minute = {self.most_tokens}, so it "
                "can never be served; send fewer or shorter texts per request, or raise the limit"
            )
        if self.on_tokens and first:
            self.on_tokens(tokens)
        self.tokens = tokens

    def step(self, name: str, started: float, ended: float | None = None, **attributes: Value) -> None:
        """Record a step that ends now or at `ended`, if the request is traced. Times are those of `perf_counter`."""
        if self.steps is not None:
            self.steps.append(Step(name, started, ended or time.perf_counter(), attributes))

    @property
    def total_ms(self) -> float:
        return (time.perf_counter() - self.started) * 1e3

    def wire(self) -> Timing:
        """The timing in the body of a response."""
        return Timing(
            round(self.total_ms, 2),
            round(self.queue_ms, 2),
            round(self.tokenization_ms, 2),
            round(self.inference_ms, 2),
        )

    def headers(self) -> dict[str, str]:
        """Return the timing headers (docs/http-api.md#response-headers)."""
        return {
            "X-Queue-Time": f"{self.queue_ms:.2f}",
            "X-Tokenization-Time": f"{self.tokenization_ms:.2f}",
            "X-Inference-Time": f"{self.inference_ms:.2f}",
            "X-Total-Time": f"{self.total_ms:.2f}",
        }


Kind = TypeVar("Kind", Counter, Histogram)
UNKNOWN = "unknown"  # label of requests for ids that the server does not know
SPARE = 100  # series of forgotten models that may exist until the next scrape


class PerModel(Generic[Kind]):
    """A metric whose label `model` has only ids that the server knows, and `unknown`."""

    def __init__(self, metric: Kind, labels: Sequence[str], knows: Callable[[str], bool]) -> None:
        self._metric: Kind = metric
        self._knows, self._place = knows, labels.index("model")
        self._series: set[tuple[str, ...]] = set()

    def labels(self, *values: str) -> Kind:
        """Return the series with these labels."""
        if values not in self._series:
            if sum(1 for _ in self._forgotten()) >= SPARE:
                self.prune()
            self._series.add(values)
        series: Kind = self._metric.labels(*values)
        return series

    def prune(self) -> None:
        """Remove the series of models that the server no longer knows."""
        for values in list(self._forgotten()):
            self._series.discard(values)
            with suppress(KeyError):
                self._metric.remove(*values)

    def _forgotten(self) -> Iterator[tuple[str, ...]]:
        for values in self._series:
            model = values[self._place]
            if model != UNKNOWN and not self._knows(model):
                yield values


class Metrics:
    """The metrics of one server. Each server has its own registry, so two servers in one process do not collide."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.knows: Callable[[str], bool] = lambda model: True  # set when the models are known
        self._per_model: list[PerModel[Any]] = []
        labels = ["route", "model"]
        self.requests = self._counted("requests", "Requests answered", [*labels, "status"])
        self.seconds = self._bounded(
            Histogram("sie_request_seconds", "Request time", labels, buckets=SECONDS, registry=self.registry),
            labels,
        )
        self.stages = self._histogram(
            "stage_seconds", "Time in a stage of requests that succeeded", SECONDS, "route", "stage"
        )
        self.in_flight = Gauge(
            "sie_requests_in_flight", "Requests that have no whole response yet", registry=self.registry
        )
        self.errors = Counter(
            "sie_errors",
            "Error responses, those to incomplete requests included",
            ["code"],
            registry=self.registry,
        )
        for code in codes():  # a rate needs the sample before the first error
            self.errors.labels(code)
        Info("sie_build", "The server's version", registry=self.registry).info({"version": __version__})
        self.tokens = self._counted("tokens", "Tokens put through a model")
        self.stage_documents = self._counted(
            "stage_documents", "Documents that a stage of a cascade read", ("model", "stage")
        )
        self.batch_tokens = self._histogram("batch_tokens", "Tokens per forward pass", TOKENS)
        self.batch_fill = self._histogram(
            "batch_fill_ratio", "Tokens of a forward pass, as a share of the model's batch_tokens", SHARES
        )
        self.batch_seconds = self._histogram(
            "batch_seconds",
            "Time of a forward pass",
            SECONDS,
        )
        self.busy = Counter(
            "sie_device_busy_seconds",
            "Time in which the device ran batches, the mean of its threads; the rate is its utilisation",
            registry=self.registry,
        )
        self.queue_tokens = Gauge("sie_queue_tokens", "Tokens waiting for the device", registry=self.registry)
        self.queue_seconds = Gauge(
            "sie_queue_seconds", "Estimated device time of all admitted work", registry=self.registry
        )
        self.cancelled = Counter(
            "sie_cancelled", "Requests whose caller disconnected", registry=self.registry
        )
        self.loads = self._counted("model_loads", "Loads that succeeded")
        self.load_failures = self._counted("model_load_failures", "Loads and swaps that failed")
        self.swaps = self._counted("model_swaps", "Versions replaced while serving")
        self.evictions = self._counted("model_evictions", "Models unloaded to free memory for another")
        self.adapter_loads = self._counted("adapter_loads", "LoRA adapters loaded")
        self.adapter_failures = self._counted("adapter_load_failures", "LoRA adapters that failed to load")
        self.adapter_evictions = self._counted(
            "adapter_evictions", "LoRA adapters dropped for max_adapters or memory"
        )

    def _counted(self, name: str, text: str, labels: Sequence[str] = ("model",)) -> PerModel[Counter]:
        return self._bounded(Counter(f"sie_{name}", text, labels, registry=self.registry), labels)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"sie_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _bounded(self, metric: Kind, labels: Sequence[str]) -> PerModel[Kind]:
        bounded = PerModel(metric, labels, lambda model: self.knows(model))
        self._per_model.append(bounded)
        return bounded

    def done(self, route: str, model: str, status: int, timing: RequestTiming) -> None:
        """Count one answered request. A model that the server does not know is counted as `unknown`."""
        model = model if self.knows(model) else UNKNOWN
        self.requests.labels(route, model, str(status)).inc()
        self.seconds.labels(route, model).observe(timing.total_ms / 1e3)
        if status >= 400:
            return  # its stages may be missing, and would count as 0 s
        stages = {
            "queue": timing.queue_ms,
            "tokenization": timing.tokenization_ms,
            "inference": timing.inference_ms,
        }
        for stage, milliseconds in stages.items():
            self.stages.labels(route, stage).observe(milliseconds / 1e3)

    def failed(self, error: SIEError) -> None:
        """Count one error response."""
        self.errors.labels(error.code).inc()

    def batch(self, tokens: int, batch_tokens: int, seconds: float) -> None:
        """Count one forward pass of a model with this `batch_tokens`."""
        self.batch_tokens.observe(tokens)
        self.batch_fill.observe(tokens / batch_tokens)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """The metrics in the Prometheus exposition format."""
        for metric in self._per_model:
            metric.prune()
        return generate_latest(self.registry)
