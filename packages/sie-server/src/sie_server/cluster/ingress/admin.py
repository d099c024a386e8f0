"""Admin calls on a cluster: on all replicas of a model, then in the desired state. Swaps have two phases.

A swap is prepared on every replica. If all can use the new version, the desired state is written, and from then on the
swap holds: a replica that starts or returns later applies it. Then every replica switches between two of its requests.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass

from msgspec import structs

from sie_server.cluster.ingress.pool import Pool
from sie_server.cluster.outcomes import Outcome
from sie_server.cluster.state import DesiredState, ModelWish
from sie_server.config import ServerConfig
from sie_server.errors import Conflict, InvalidInput, ModelLoading, SIEError
from sie_server.wire import AdminAnswer, ReplicaReport

OPERATION_S = 3600.0  # a load may download for long; its own limit is load_stall_s
NO_VOLUME = (
    "a cluster keeps what admins change on a volume that all machines share; start it with --models-dir DIRECTORY "
    "on such a volume"
)


@dataclass(frozen=True)
class ClusterAdmin:
    """The operations of `serving.backend.Admin`, on all replicas that serve the model."""

    config: ServerConfig
    pools_of: Callable[[str], Collection[Pool]]  # of a model
    learn: Callable[[str], None]  # of an id that is new

    async def load(
        self, model: str, source: str | None = None, revision: str | None = None, pin: bool | None = None
    ) -> AdminAnswer:
        """Load a model on all replicas."""
        began, state = time.monotonic(), self._state()
        outcomes = await self._operate(model, "run", "load", model, source, revision, pin)
        answer = _answer(outcomes, began)
        await self._write(
            state,
            model,
            lambda old: structs.replace(
                old,
                source=source or old.source,
                revision=revision or old.revision,
                loaded=True,
                pinned=old.pinned if pin is None else pin,
            ),
        )
        self.learn(model)
        return answer

    async def unload(self, model: str) -> AdminAnswer:
        """Unload a model on all replicas. The next request loads it again."""
        began, state = time.monotonic(), self._state()
        outcomes = await self._operate(model, "run", "unload", model)
        answer = _answer(outcomes, began)
        await self._write(state, model, lambda old: structs.replace(old, loaded=None, pinned=False))
        return answer

    async def swap(
        self,
        model: str,
        source: str,
        revision: str | None = None,
        replay: int | None = None,
        max_difference: float | None = None,
    ) -> AdminAnswer:
        """Replace the weights on all replicas; if one cannot use them, on none."""
        if replay is not None or max_difference is not None:
            raise InvalidInput(
                "a cluster replays no requests, because each replica sees a part of them; compare the versions on one "
                "server, and omit replay and max_difference here - at `$.replay`"
            )
        began, state, token = time.monotonic(), self._state(), uuid.uuid4().hex
        prepared = await self._operate(model, "prepare", token, model, source, revision)
        try:
            _require_all(prepared)
            wish = await self._write(
                state, model, lambda old: structs.replace(old, source=source, revision=revision)
            )
        except BaseException:
            await asyncio.shield(self._operate(model, "finish", token, model, None))
            raise
        answer = _answer(await asyncio.shield(self._operate(model, "finish", token, model, wish)), began)
        if not any(
            one.value for one in prepared
        ):  # as on one server, a swap loads a model that is not loaded
            return await self.load(model)
        return answer

    async def load_adapter(self, model: str, adapter: str, source: str) -> AdminAnswer:
        """Load a LoRA adapter on all replicas."""
        began, state = time.monotonic(), self._state()
        answer = _answer(await self._operate(model, "run", "load_adapter", model, adapter, source), began)
        await self._write(
            state, model, lambda old: structs.replace(old, adapters={**old.adapters, adapter: source})
        )
        return answer

    async def unload_adapter(self, model: str, adapter: str) -> AdminAnswer:
        """Free a LoRA adapter on all replicas."""
        began, state = time.monotonic(), self._state()
        answer = _answer(await self._operate(model, "run", "unload_adapter", model, adapter), began)

        def without(old: ModelWish) -> ModelWish:
            return structs.replace(old, adapters={k: v for k, v in old.adapters.items() if k != adapter})

        await self._write(state, model, without)
        return answer

    def _state(self) -> DesiredState:
        if self.config.models_dir is None:
            raise Conflict(NO_VOLUME)
        return DesiredState(self.config.models_dir)

    async def _write(
        self, state: DesiredState, model: str, edit: Callable[[ModelWish], ModelWish]
    ) -> ModelWish:
        changed = await asyncio.to_thread(
            state.change, lambda old: old.with_model(model, edit(old.models.get(model, ModelWish())))
        )
        return changed.models[model]

    async def _operate(self, model: str, method: str, *args: object) -> list[Outcome]:
        """Call `ReplicaOperators` on every replica that serves the model.

        Raises:
            ModelLoading: there is none.
        """
        each = [
            pool.broadcast("operate", method, *args, timeout_s=OPERATION_S) for pool in self.pools_of(model)
        ]
        outcomes = [one for found in await asyncio.gather(*each) for one in found]
        if not outcomes:
            raise ModelLoading(
                f"no replica serves {model!r} now; try again when one has started", retry_after_s=5
            )
        return outcomes


def _require_all(outcomes: list[Outcome]) -> None:
    """Raise the first failure, with a report on every replica."""
    failed = next((one for one in outcomes if one.failure), None)
    if failed and failed.failure:
        error: SIEError = failed.failure.error()
        error.details["replicas"] = [
            {"replica": one.replica, "error": one.failure.message if one.failure else None}
            for one in outcomes
        ]
        raise error


def _answer(outcomes: list[Outcome], began: float) -> AdminAnswer:
    """Return the answer of a replica that did it, with a report on all of them.

    Raises:
        SIEError: no replica did it.
    """
    done = [one for one in outcomes if one.failure is None and one.value]
    if not done:
        _require_all(outcomes)
    first: AdminAnswer = max((one.value for one in done), key=lambda value: value.state == "loaded")
    reports = [
        ReplicaReport(one.replica, error=one.failure.message)
        if one.failure
        else ReplicaReport(one.replica, one.value.state if one.value else None)
        for one in outcomes
    ]
    return structs.replace(
        first,
        memory_bytes=sum(one.value.memory_bytes for one in done),
        seconds=round(time.monotonic() - began, 3),
        replicas=reports,
    )
