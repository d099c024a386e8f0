"""The service of an ingress replica: the methods of `serving.service.Service`, run by model replicas."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from sie_server.catalog import Calibration, ModelConfig, known_models, plain_calibration
from sie_server.cluster.ingress.admin import ClusterAdmin
from sie_server.cluster.ingress.metrics import ClusterMetrics, merged
from sie_server.cluster.ingress.models import merged_infos, unloaded_info
from sie_server.cluster.ingress.pool import Pool, answers
from sie_server.cluster.ingress.splitting import score_in_parts
from sie_server.cluster.outcomes import Outcome
from sie_server.config import ServerConfig, suggest
from sie_server.errors import InvalidInput, ModelNotFound, shown
from sie_server.serving.backend import TokenWork
from sie_server.serving.metrics import Metrics, RequestTiming
from sie_server.serving.vendor import VendorOptions
from sie_server.wire import (
    EncodeRequest,
    EncodeResponse,
    InspectResponse,
    ModelInfo,
    ScoreRequest,
    ScoreResponse,
)

log = logging.getLogger("sie_server.cluster")
MOST_SOURCES = 10_000  # remembered places of checkpoints


class RemoteService:
    """Used on the event loop of an ingress replica."""

    def __init__(
        self,
        config: ServerConfig,
        name: str,
        handles: dict[str, DeploymentHandle[Any]],
        siblings: DeploymentHandle[Any],
    ) -> None:
        """`handles` are those of the pools, `siblings` the one of all ingress replicas, `name` that of this one."""
        self.config, self._name, self._siblings = config, name, siblings
        self.metrics = Metrics()
        counters = ClusterMetrics(self.metrics.registry)
        cluster = config.cluster
        self.pools = {
            pool: Pool(
                pool,
                cluster.pools[pool],
                handle,
                config.load_wait_s,
                cluster.start_s,
                counters,
                self._tell_start,
            )
            for pool, handle in handles.items()
        }
        self._known: dict[str, ModelConfig | None] = dict(known_models(config.model, config.models_dir))
        self._aliases = {alias: one.id for one in self._known.values() if one for alias in one.aliases}
        self.metrics.knows = self._known.__contains__
        self._telling: set[asyncio.Future[Any]] = set()
        self._sources: set[str] = set()
        self._first: dict[str | None, str] = {}
        self.admin = ClusterAdmin(config, self._pools_of, self.note_model)

    def _tell_start(self, pool: str, seconds: float) -> None:
        """Send the measured start of a first replica to all ingress replicas."""
        telling = asyncio.ensure_future(answers(self._siblings, "note_start", pool, seconds))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def preload(self) -> None:
        """Wait until every pool that starts with replicas has one."""
        waiting = [pool for pool in self.pools.values() if pool.config.min_replicas]
        while waiting:
            waiting = [pool for pool in waiting if not await pool.broadcast("ping")]
            await asyncio.sleep(0.2)

    async def close(self) -> None:
        """Do nothing: Serve ends the replicas."""

    # ── requests ──

    async def score(self, model: str, request: ScoreRequest, timing: RequestTiming) -> ScoreResponse:
        """See `Service.score`."""
        return await self.score_each(model, [request], timing)

    async def score_each(
        self, model: str, requests: Sequence[ScoreRequest], timing: RequestTiming, *, pairs: bool = False
    ) -> ScoreResponse:
        """See `Service.score_each`. A large request may be scored by several replicas."""
        per_part = self.config.cluster.split_documents
        if per_part and len(requests) == 1 and not pairs and not self._is_cascade(model):
            pool, (name, _) = self.pool_of(model, timing), self.resolve(model)
            if found := await score_in_parts(pool, name, model, requests[0], timing, per_part):
                return found
        done: ScoreResponse = await self._call(model, "score_each", timing, model, requests, pairs=pairs)
        return done

    def _is_cascade(self, model: str) -> bool:
        known = self._known.get(self.resolve(model)[0])
        return known is not None and known.cascade is not None

    async def inspect(self, model: str, request: ScoreRequest, timing: RequestTiming) -> InspectResponse:
        """See `Service.inspect`."""
        done: InspectResponse = await self._call(model, "inspect", timing, model, request)
        return done

    async def encode(
        self,
        model: str,
        request: EncodeRequest,
        timing: RequestTiming,
        vendor: VendorOptions | None = None,
    ) -> EncodeResponse:
        """See `Service.encode`."""
        done: EncodeResponse = await self._call(model, "encode", timing, model, request, vendor=vendor)
        return done

    async def with_tokenizer(
        self, model: str, work: TokenWork, texts: Sequence[str], timing: RequestTiming
    ) -> Any:
        """See `Service.with_tokenizer`."""
        return await self._call(model, "with_tokenizer", timing, model, work, texts)

    def check_early(self, model: str | None, timing: RequestTiming) -> None:
        """Do nothing: only a replica knows its queue."""

    async def _call(self, model: str, method: str, timing: RequestTiming, *args: Any, **options: Any) -> Any:
        pool = self.pool_of(model, timing)
        outcome = await pool.call(self.resolve(model)[0], method, timing, *args, **options)
        return self._result(outcome)

    def _result(self, outcome: Outcome) -> Any:
        if len(self._sources) < MOST_SOURCES:
            self._sources |= outcome.sources
        return outcome.result()

    def _pools_of(self, model: str) -> list[Pool]:
        """Return all pools that serve a model."""
        name, _ = self.resolve(model)
        named = [pool for pool in self.pools.values() if name in pool.config.models]
        return named or [pool for pool in self.pools.values() if not pool.config.models]

    def pool_of(self, model: str, timing: RequestTiming) -> Pool:
        """Return the pool that serves a model, among those that the headers of the request allow.

        Raises:
            InvalidInput: no pool has that name or machine.
            ModelNotFound: none of the pools serves the model.
        """
        pools = list(self.pools.values())
        if timing.pool is not None:
            pools = [pool for pool in pools if pool.name == timing.pool]
            _require(pools, "pool", timing.pool, "X-SIE-Pool", list(self.pools))
        if timing.machine is not None:
            machines = {pool.name: pool.config.accelerator or "cpu" for pool in pools}
            wanted = timing.machine.lower()
            pools = [
                pool for pool in pools if machines[pool.name].lower() == wanted or pool.name == timing.machine
            ]
            _require(
                pools, "machine", timing.machine, "X-SIE-MACHINE-PROFILE", sorted(set(machines.values()))
            )
        name, _ = self.resolve(model)
        named = [pool for pool in pools if name in pool.config.models]
        found = named or [pool for pool in pools if not pool.config.models]
        if not found:
            raise ModelNotFound(
                f"model {shown(name)} is in none of the pools {', '.join(pool.name for pool in pools)}; add it to "
                "cluster.pools.NAME.models"
            )
        return found[0]

    # ── models ──

    def note_model(self, name: str) -> None:
        """Remember an id that an admin has added."""
        self._known.setdefault(name, None)

    def resolve(self, name: str) -> tuple[str, str | None]:
        """Split MODEL:ADAPTER of a known model, and replace an alias by the model's id. Other names are unchanged."""
        if name in self._known or name in self._aliases:
            return self._aliases.get(name, name), None
        model, _, adapter = name.rpartition(":")
        if model in self._known or model in self._aliases:
            return self._aliases.get(model, model), adapter
        return name, None

    def calibration(self, name: str) -> Calibration | None:
        """See `Backend.calibration`; as the models were at the start of this process."""
        id, adapter = self.resolve(name)
        model = self._known.get(id)
        if model and model.stages:
            model = self._known.get(self.resolve(model.stages[-1].model)[0])
        return plain_calibration(model) if model and adapter is None else None

    def configured(self) -> list[str]:
        """Return the ids of the models that are named at start, in their order."""
        return [one.id for one in self._known.values() if one and one.preload]

    async def infos(self) -> list[ModelInfo]:
        """Describe all models, each as the replica that got furthest with it sees it."""
        found = merged_infos(await self._of_all("infos"))
        for name, model in self._known.items():
            if name not in found and model:
                found[name] = unloaded_info(model, self._known)
        named = self.configured()
        others = sorted(
            (i for i in found.values() if i.name not in named), key=lambda i: (not i.loaded, i.name)
        )
        return [*(found[name] for name in named), *others]

    async def info(self, name: str) -> ModelInfo:
        """Describe one model, under the name of the request.

        Raises:
            ModelNotFound, AdapterNotFound
        """
        outcomes = await self._outcomes("info", name)
        values = [outcome.value for outcome in outcomes if outcome.failure is None]
        if values:
            return next(iter(merged_infos([[one] for one in values]).values()))
        for outcome in outcomes:
            self._result(outcome)
        if model := self._known.get(self._aliases.get(name, name)):
            return unloaded_info(model, self._known)
        raise ModelNotFound(f"model {shown(name)} is not known here{suggest(name, list(self._known))}")

    async def first_with(self, output: str | None) -> str | None:
        """See `Service.first_with`. The outputs of a model never change, so a found one is remembered."""
        if output not in self._first:
            for pool in self.pools.values():
                timing = RequestTiming()
                found = self._result(await pool.call("", "first_with", timing, output))
                if found is not None:
                    self._first[output] = found
                    break
        return self._first.get(output)

    async def pooling(self, name: str) -> tuple[str, ...] | None:
        """See `Service.pooling`."""
        timing = RequestTiming()
        outcome = await self.pool_of(name, timing).call(self.resolve(name)[0], "pooling", timing, name)
        found: tuple[str, ...] | None = self._result(outcome)
        return found

    def sources(self) -> set[str]:
        """Return the places of checkpoints that errors of replicas have named."""
        return self._sources

    # ── state ──

    async def metrics_text(self) -> bytes:
        """Return the metrics of all replicas, with the label `replica`."""
        pages = {one.replica: one.value for one in await self._outcomes("metrics_text") if one.value}
        pages |= dict(await answers(self._siblings, "own_metrics"))
        return merged({**pages, self._name: self.metrics.text()})

    async def _outcomes(self, method: str, *args: Any) -> list[Outcome]:
        each = [pool.outcomes(method, *args) for pool in self.pools.values()]
        return [outcome for outcomes in await asyncio.gather(*each) for outcome in outcomes]

    async def _of_all(self, method: str, *args: Any) -> list[Any]:
        return [one.value for one in await self._outcomes(method, *args) if one.failure is None]

    def death(self) -> str | None:
        """Return None: Serve restarts replicas that fail."""
        return None

    def unready(self) -> str | None:
        """Return None: a request waits for a replica."""
        return None


def _require(found: Iterable[Pool], what: str, name: str, header: str, known: list[str]) -> None:
    if not list(found):
        names = ", ".join(known)
        raise InvalidInput(
            f"this cluster has no {what} {shown(name)}{suggest(name, known)}; it has {names} - in the header {header}"
        )
