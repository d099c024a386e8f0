"""Admin calls on one replica: the operations of the service, swaps in two phases, and the desired state."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sie_server.cluster.state import DesiredState, ModelWish, State
from sie_server.errors import Conflict, SIEError
from sie_server.serving.lifecycle.slots import Version
from sie_server.serving.loading.progress import Progress
from sie_server.serving.service import Service
from sie_server.wire import AdminAnswer

log = logging.getLogger("sie_server.cluster")
HOLD_S = 120.0  # a prepared swap waits for its commit
RETRY_S = 10.0  # after an error
BUSY = ("loading", "unloading")  # states of a model


class ReplicaOperators:
    """Applies what the ingress and the desired state say. Used on the event loop of the service."""

    def __init__(self, service: Service, desired: DesiredState | None, poll_s: float) -> None:
        self._service, self._desired, self._poll_s = service, desired, poll_s
        self._applied = State()
        self._prepared: dict[str, Prepared] = {}
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Apply the desired state. Models load with their first request."""
        if self._desired:
            await self._advance(await asyncio.to_thread(self._desired.read), load=False)

    async def follow(self) -> None:
        """Apply generations that were written while the models loaded, and follow the state from now on."""
        if self._desired:
            await self._advance(await asyncio.to_thread(self._desired.read), load=True)
            self._following = asyncio.create_task(self._follow(self._desired))

    def stop(self) -> None:
        """Follow the state no longer."""
        if self._following:
            self._following.cancel()

    async def run(self, action: str, model: str, *args: object) -> AdminAnswer:
        """Run an operation of `ModelAdmin`.

        Raises:
            SIEError
        """
        operation: Callable[..., Awaitable[AdminAnswer]] = getattr(self._service.admin, action)
        return await operation(model, *args)

    # ── swaps ──

    async def prepare(self, token: str, model: str, source: str, revision: str | None) -> bool:
        """Load the new version in addition to the serving one, and hold it. Return False if none is serving here.

        Raises:
            SIEError: the new version cannot be used; the old one keeps serving.
        """
        if not (await self._service.info(model)).loaded:
            self._service.admin.check_source(source)
            return False
        prepared = self._prepared[token] = Prepared(model, source, revision)
        work = self._service.admin.swap(model, source, revision, hold=prepared.hold)
        prepared.task = asyncio.create_task(work)
        prepared.task.add_done_callback(
            lambda task: task.cancelled() or task.exception()
        )  # nothing may await it
        ready = asyncio.create_task(prepared.ready.wait())
        await asyncio.wait([prepared.task, ready], return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if prepared.task.done():
            del self._prepared[token]
            prepared.task.result()
        return True

    async def finish(self, token: str, model: str, wish: ModelWish | None) -> AdminAnswer | None:
        """Switch to the prepared version, or give it up if `wish` is None.

        Raises:
            SIEError
        """
        prepared = self._prepared.pop(token, None)
        if prepared is None or prepared.task is None:
            if wish:
                await self._follow_wish(model, wish, load=False)
                return self._service.admin.describe(model)
            return None
        prepared.decide(commit=wish is not None)
        try:
            return await prepared.task
        except Conflict:
            if wish:
                raise
            return None

    # ── desired state ──

    async def _follow(self, desired: DesiredState) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await self._advance(await asyncio.to_thread(desired.read), load=True)
            except Conflict as error:
                log.info("the desired state is applied later: %s", error.message)
            except Exception:
                log.exception("cannot follow the desired state")
                await asyncio.sleep(RETRY_S)

    async def _advance(self, state: State, *, load: bool) -> None:
        """Apply a generation, if it is newer and no prepared swap waits for its decision."""
        self._prepared = {token: one for token, one in self._prepared.items() if not one.ended}
        if state.generation <= self._applied.generation:
            return
        for one in self._prepared.values():
            wish = state.models.get(one.model)
            if wish and wish != self._applied.models.get(one.model) and one.is_of(wish):
                one.decide(commit=True)  # the ingress that would have said so may have died
        if not self._prepared:
            await self._apply(state, load=load)

    async def _apply(self, state: State, *, load: bool) -> None:
        """Bring all models to their wishes. A wish that fails is logged, and the model's `last_error` names it.

        Raises:
            Conflict: a model is busy with another load or swap. The generation is applied again later.
        """
        for model, wish in state.models.items():
            if self._applied.models.get(model) == wish:
                continue
            try:
                await self._follow_wish(model, wish, load=load)
            except Conflict:
                raise
            except SIEError as error:
                log.error("generation %d, model %s: %s", state.generation, model, error.message)
        self._applied = state

    async def _follow_wish(self, model: str, wish: ModelWish, *, load: bool) -> None:
        admin = self._service.admin
        if wish.source is not None:
            admin.move(model, wish.source, wish.revision)
        info = await self._service.info(model)
        if info.state in BUSY:
            raise Conflict(f"model {model!r} is {info.state}; its source cannot be changed now")
        loaded = info.loaded
        if wish.source is not None and loaded and not admin.serves(model, wish.source, wish.revision):
            await admin.swap(model, wish.source, wish.revision)
        if wish.loaded and not loaded and (load or wish.pinned):
            await admin.load(model, pin=wish.pinned)
        if wish.loaded is False and loaded:
            await admin.unload(model)
        admin.name_adapters(model, wish.adapters)


class Prepared:
    """A swap between its two phases."""

    def __init__(self, model: str, source: str, revision: str | None) -> None:
        self.model, self._version = model, (source, revision)
        self.ready = asyncio.Event()
        self.task: asyncio.Task[AdminAnswer] | None = None
        self._commit: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def is_of(self, wish: ModelWish) -> bool:
        """Return whether this is the swap that a wish names."""
        return (wish.source, wish.revision) == self._version

    @property
    def ended(self) -> bool:
        """Whether the swap has been carried out or given up."""
        return self.task is not None and self.task.done()

    async def hold(self, version: Version, progress: Progress) -> None:
        """Wait for the decision.

        Raises:
            Conflict: the swap was given up.
        """
        self.ready.set()
        try:
            commit = await asyncio.wait_for(self._commit, HOLD_S)
        except TimeoutError:
            commit = False
        if not commit:
            raise Conflict("the swap was given up, because a replica of the cluster could not take part")

    def decide(self, *, commit: bool) -> None:
        """End the wait."""
        if not self._commit.done():
            self._commit.set_result(commit)
