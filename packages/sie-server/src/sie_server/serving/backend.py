"""The interface between HTTP and the service, which is `serving.service.Service` or that of a cluster.

This module imports no torch, so a process that only answers HTTP starts fast and stays small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sie_server.catalog import Calibration
from sie_server.config import ServerConfig
from sie_server.errors import SIEError
from sie_server.serving.metrics import Metrics, RequestTiming
from sie_server.serving.vendor import VendorOptions
from sie_server.wire import (
    AdminAnswer,
    EncodeRequest,
    EncodeResponse,
    InspectResponse,
    ModelInfo,
    ScoreRequest,
    ScoreResponse,
)

if TYPE_CHECKING:
    from sie_server.engine.engine import Engine

OnDeath = Callable[[SIEError], None]
TokenWork = Callable[["Engine"], Any]  # picklable, because it may run in another process


class Admin(Protocol):
    """Operations of admin callers. They raise the errors of `serving.operators.admin.ModelAdmin`."""

    async def load(
        self, model: str, source: str | None = None, revision: str | None = None, pin: bool | None = None
    ) -> AdminAnswer:
        """Load a model now. With a source, the model may be new."""

    async def unload(self, model: str) -> AdminAnswer:
        """Unpin the model, finish its running requests and free its memory."""

    async def swap(
        self,
        model: str,
        source: str,
        revision: str | None = None,
        replay: int | None = None,
        max_difference: float | None = None,
    ) -> AdminAnswer:
        """Replace the weights of a model between two requests, perhaps after a comparison of both versions."""

    async def load_adapter(self, model: str, adapter: str, source: str) -> AdminAnswer:
        """Load a LoRA adapter now."""

    async def unload_adapter(self, model: str, adapter: str) -> AdminAnswer:
        """Free a LoRA adapter."""


class Backend(Protocol):
    """Requests, models and health. Created and used on one event loop; the methods raise any `SIEError`."""

    config: ServerConfig
    metrics: Metrics  # of the requests that this process answers

    @property
    def admin(self) -> Admin:
        """The operations of admin callers."""

    async def preload(self) -> None:
        """Wait until the models that are named at start can answer."""

    async def close(self) -> None:
        """End all threads and tasks. Requests that still wait fail."""

    # ── requests ──

    async def score(self, model: str, request: ScoreRequest, timing: RequestTiming) -> ScoreResponse:
        """Rank the candidates by relevance to the query."""

    async def score_each(
        self, model: str, requests: Sequence[ScoreRequest], timing: RequestTiming, *, pairs: bool = False
    ) -> ScoreResponse:
        """Score the candidates of several queries as one request."""

    async def inspect(self, model: str, request: ScoreRequest, timing: RequestTiming) -> InspectResponse:
        """Show the sequences that `score` would read."""

    async def encode(
        self,
        model: str,
        request: EncodeRequest,
        timing: RequestTiming,
        vendor: VendorOptions | None = None,
    ) -> EncodeResponse:
        """Turn texts into vectors."""

    async def with_tokenizer(
        self, model: str, work: TokenWork, texts: Sequence[str], timing: RequestTiming
    ) -> Any:
        """Return `work(engine)`, which reads or writes tokens of `texts`."""

    def check_early(self, model: str | None, timing: RequestTiming) -> None:
        """Refuse a request before its body is read, if it cannot be answered in time."""

    # ── models ──

    def resolve(self, name: str) -> tuple[str, str | None]:
        """Split MODEL:ADAPTER of a known model, and replace an alias by the model's id. Other names are unchanged."""

    def calibration(self, name: str) -> Calibration | None:
        """Return the calibration that applies to a model's raw scores without any options; None: it has none."""

    def configured(self) -> list[str]:
        """Return the ids of the models that are named at start, in their order."""

    async def infos(self) -> list[ModelInfo]:
        """Describe all models: those named at start, then those that are loaded, then all others."""

    async def info(self, name: str) -> ModelInfo:
        """Describe one model, under the name of the request. Never loads the model."""

    async def first_with(self, output: str | None) -> str | None:
        """Return the first model named at start that has `output` (None: any)."""

    async def pooling(self, name: str) -> tuple[str, ...] | None:
        """Return how an embedding model pools, None for other models. The model is loaded first if necessary."""

    def sources(self) -> set[str]:
        """Return the places of all known checkpoints and adapters, which only admin callers may see."""

    # ── state ──

    async def metrics_text(self) -> bytes:
        """Return the metrics in the Prometheus exposition format."""

    def death(self) -> str | None:
        """Return why only a restart helps; None: the service works."""

    def unready(self) -> str | None:
        """Return why the service should get no requests now; None: it should."""


OpenBackend = Callable[[ServerConfig, OnDeath | None], Backend]
