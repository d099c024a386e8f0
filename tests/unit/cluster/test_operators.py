"""A replica and the desired state: swaps in two phases, and generations that it follows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sie_server.catalog import ModelConfig
from sie_server.cluster.replica.operators import ReplicaOperators
from sie_server.cluster.state import DesiredState, ModelWish
from sie_server.errors import Conflict
from sie_server.serving.lifecycle.slots import Version
from sie_server.serving.lifecycle.transitions import Hold
from sie_server.serving.loading.progress import Progress
from support.waiting import until

pytestmark = pytest.mark.unit
POLL_S = 0.01


class Model:
    """One model of a service, and `ModelAdmin` for it. `swaps` are the sources that have been loaded for a swap."""

    def __init__(self) -> None:
        self.source, self.state, self.swaps = "old", "loaded", []  # type: str, str, list[str]
        self.admin = self

    async def info(self, model: str) -> Any:
        return SimpleNamespace(loaded=self.state == "loaded", state=self.state)

    async def swap(self, model: str, source: str, revision: str | None, *, hold: Hold | None = None) -> str:
        self.swaps.append(source)
        if hold:
            await hold(Version(ModelConfig(model, source)), Progress())
        self.source = source
        return f"swapped to {source}"

    def serves(self, model: str, source: str, revision: str | None) -> bool:
        return self.state == "loaded" and self.source == source

    def move(self, model: str, source: str, revision: str | None) -> None:
        if self.state == "available":
            self.source = source

    def name_adapters(self, model: str, adapters: dict[str, str]) -> None:
        self.adapters = adapters

    def describe(self, model: str) -> str:
        return f"serves {self.source}"


def write(state: DesiredState, wish: ModelWish) -> ModelWish:
    state.change(lambda old: old.with_model("m", wish))
    return wish


def run(folder: Path, test: Callable[[Model, ReplicaOperators, DesiredState], Awaitable[None]]) -> None:
    async def started() -> None:
        model, state = Model(), DesiredState(str(folder))
        operators = ReplicaOperators(model, state, POLL_S)  # type: ignore[arg-type]
        await operators.start()
        await operators.follow()
        await test(model, operators, state)

    asyncio.run(started())


def test_a_swap_loads_the_new_weights_once(tmp_path: Path) -> None:
    async def test(model: Model, operators: ReplicaOperators, state: DesiredState) -> None:
        assert await operators.prepare("t", "m", "new", None)
        assert model.source == "old"
        assert await operators.finish("t", "m", write(state, ModelWish(source="new"))) == "swapped to new"
        write(state, ModelWish(source="new", adapters={"a": "b"}))
        await until(lambda: getattr(model, "adapters", None) == {"a": "b"})  # has followed
        assert (model.source, model.swaps) == ("new", ["new"])

    run(tmp_path, test)


def test_a_prepared_swap_is_carried_out_if_its_ingress_dies_after_writing_the_state(tmp_path: Path) -> None:
    async def test(model: Model, operators: ReplicaOperators, state: DesiredState) -> None:
        await operators.prepare("t", "m", "new", None)
        write(state, ModelWish(source="new"))
        await until(lambda: model.source == "new")
        write(state, ModelWish(source="newer"))
        await until(lambda: model.source == "newer")  # it goes on following
        assert model.swaps == ["new", "newer"]
        assert await operators.finish("t", "m", ModelWish(source="newer")) == "serves newer"

    run(tmp_path, test)


def test_a_prepared_swap_whose_ingress_dies_before_holds_up_the_state_only_for_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sie_server.cluster.replica.operators.HOLD_S", 0.05)

    async def test(model: Model, operators: ReplicaOperators, state: DesiredState) -> None:
        await operators.prepare("t", "m", "new", None)
        write(state, ModelWish(source="other"))
        await until(lambda: model.source == "other")

    run(tmp_path, test)


def test_a_generation_waits_for_a_model_that_is_loading(tmp_path: Path) -> None:
    async def test(model: Model, operators: ReplicaOperators, state: DesiredState) -> None:
        model.state = "loading"
        wish = write(state, ModelWish(source="new"))
        with pytest.raises(Conflict, match="is loading"):
            await operators.finish("t", "m", wish)
        model.state = "loaded"
        await until(lambda: model.source == "new")

    run(tmp_path, test)


def test_generations_written_while_the_models_load_are_applied_before_the_first_request(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        model, state = Model(), DesiredState(str(tmp_path))
        operators = ReplicaOperators(model, state, POLL_S)  # type: ignore[arg-type]
        await operators.start()
        write(state, ModelWish(source="new"))
        await operators.follow()
        assert model.source == "new"

    asyncio.run(test())
