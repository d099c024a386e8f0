"""Prometheus metrics, and the timing of one request for its headers."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sie_server.wire import Timing

SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass
class RequestTiming:
    """The time that one request spent in each stage, in milliseconds, and when its answer is due."""

    started: float = field(default_factory=time.perf_counter)
    deadline: float | None = None  # of the same clock as `started`
    tokenization_ms: float = 0.0
    queue_ms: float = 0.0
    inference_ms: float = 0.0

    def set_deadline(self, milliseconds: float) -> None:
        """Set the deadline to so long after the start, unless it is earlier already."""
        deadline = self.started + milliseconds / 1e3
        self.deadline = deadline if self.deadline is None else min(self.deadline, deadline)

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


class Metrics:
    """The metrics of one server. Each server has its own registry, so two servers in one process do not collide."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["route", "model"]
        self.requests = Counter(
            "sie_requests", "Requests answered", [*labels, "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "sie_request_seconds", "Request time", labels, buckets=SECONDS, registry=self.registry
        )
        self.stages = Histogram(
            "sie_stage_seconds", "Time in a stage", ["stage"], buckets=SECONDS, registry=self.registry
        )
        self.tokens = Counter("sie_tokens", "Tokens put through a model", ["model"], registry=self.registry)
        self.batch_tokens = Histogram(
            "sie_batch_tokens", "Tokens per forward pass", buckets=TOKENS, registry=self.registry
        )
        self.queue_tokens = Gauge("sie_queue_tokens", "Tokens waiting for the device", registry=self.registry)
        self.cancelled = Counter(
            "sie_cancelled", "Requests whose caller disconnected", registry=self.registry
        )
        model = ["model"]  # known ids only: a caller must not be able to grow the metrics
        self.loads = Counter("sie_model_loads", "Loads that succeeded", model, registry=self.registry)
        self.load_failures = Counter(
            "sie_model_load_failures", "Loads and swaps that failed", model, registry=self.registry
        )
        self.swaps = Counter(
            "sie_model_swaps", "Versions replaced while serving", model, registry=self.registry
        )
        self.evictions = Counter(
            "sie_model_evictions", "Models unloaded to free memory for another", model, registry=self.registry
        )

        self.adapter_loads = Counter(
            "sie_adapter_loads", "LoRA adapters loaded", model, registry=self.registry
        )
        self.adapter_failures = Counter(
            "sie_adapter_load_failures", "LoRA adapters that failed to load", model, registry=self.registry
        )
        self.adapter_evictions = Counter(
            "sie_adapter_evictions",
            "LoRA adapters dropped for max_adapters or memory",
            model,
            registry=self.registry,
        )

    def done(self, route: str, model: str, status: int, timing: RequestTiming) -> None:
        """Count one answered request."""
        self.requests.labels(route, model, str(status)).inc()
        self.seconds.labels(route, model).observe(timing.total_ms / 1e3)
        stages = {
            "queue": timing.queue_ms,
            "tokenization": timing.tokenization_ms,
            "inference": timing.inference_ms,
        }
        for stage, milliseconds in stages.items():
            self.stages.labels(stage).observe(milliseconds / 1e3)

    def text(self) -> bytes:
        """The metrics in the Prometheus exposition format."""
        return generate_latest(self.registry)
