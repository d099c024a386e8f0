"""A server whose models do nothing, so that only the way of a request costs time.

    python -m bench.cluster.nothing serve --port 8080              # the HTTP app of one server
    python -m bench.cluster.nothing serve --ray ...                # the cluster

Both have the code of `sie-server serve`, but for the service: its scores are made up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sie_server.cluster.replica import replica
from sie_server.cluster.replica.replica import ModelReplica
from sie_server.config import ServerConfig
from sie_server.serving.metrics import Metrics, RequestTiming
from sie_server.wire import ModelInfo, ScoreEntry, ScoreRequest, ScoreResponse, Usage

MODEL = "nothing"


class NothingService:
    """The methods of `Service` that a score request calls, answered at once."""

    admin: Any = None

    def __init__(self, config: ServerConfig, on_death: object = None) -> None:
        self.config, self.metrics = config, Metrics()

    async def score(self, model: str, request: ScoreRequest, timing: RequestTiming) -> ScoreResponse:
        """Return made-up scores."""
        return await self.score_each(model, [request], timing)

    async def score_each(
        self, model: str, requests: Sequence[ScoreRequest], timing: RequestTiming, *, pairs: bool = False
    ) -> ScoreResponse:
        """Return made-up scores, in the order of the items."""
        items = [item for request in requests for item in request.items]
        timing.items = len(items)
        timing.count_tokens(len(items))
        entries = [
            ScoreEntry(item.id or f"item-{place}", 1 / (place + 3), place) for place, item in enumerate(items)
        ]
        return ScoreResponse(model, None, entries, Usage(len(items)), "probability")

    async def inspect(self, model: str, request: ScoreRequest, timing: RequestTiming) -> Any:
        """Refuse: nothing here has tokens."""
        raise NotImplementedError

    def check_early(self, model: str | None, timing: RequestTiming) -> None:
        """Refuse nothing."""

    def resolve(self, name: str) -> tuple[str, str | None]:
        """Return the name."""
        return name, None

    def configured(self) -> list[str]:
        """Return no models."""
        return []

    async def infos(self) -> list[ModelInfo]:
        """Return no models."""
        return []

    async def preload(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""

    def queued_seconds(self) -> float:
        """Return the queue, which is always empty."""
        return 0.0

    def room(self, unused_s: float) -> int:
        """Return the memory for models, which need none."""
        return 0

    def longest_unused_s(self) -> float:
        """Return the time since the last use of a model, of which there is none."""
        return 0.0

    def busy_seconds(self) -> float:
        """Return the busy time, which is none."""
        return 0.0

    def sources(self) -> set[str]:
        """Return no places."""
        return set()

    def unready(self) -> None:
        """Return None: it is ready."""

    def death(self) -> None:
        """Return None: it lives."""


class NothingReplica(ModelReplica):
    """A model replica over a `NothingService`."""

    async def __init__(self, config: ServerConfig) -> None:  # type: ignore[misc]
        replica.Service = NothingService  # type: ignore[assignment,misc]
        await super().__init__(config)


def main() -> None:
    """Run the command line of the server with this service."""
    from bench.cluster import nothing  # by its name, because other processes import the class from there

    from sie_server.api import server
    from sie_server.cli import main as command_line
    from sie_server.cluster import app

    app.ModelReplica = nothing.NothingReplica  # type: ignore[misc]
    server.Service = nothing.NothingService  # type: ignore[assignment,misc]
    command_line()


if __name__ == "__main__":
    main()
