"""LoRA adapters within the memory budget: sizes are known before loading, and adapters are evicted as models are."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from functools import partial
from math import ceil
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from sie_server.errors import ModelLoadFailed, ResourceExhausted, SIEError
from sie_server.serving.service import Service
from support.checkpoints import cross_encoders
from support.families.adapters import make_adapter
from support.servers import inprocess
from support.servers.inprocess import scores
from support.waiting import until

QUERY, TEXTS = "how do stars burn", ["stars burn hydrogen", "rain falls tomorrow"]
NAMES = ["one", "two", "three", "four"]
MODEL, OTHER, MIB = "bert", "other", 2**20
serving = partial(inprocess.serving, batch_tokens=8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return two models of about 5 MiB, and adapters of nearly that size."""
    root = tmp_path_factory.mktemp("made")
    for seed, name in enumerate((MODEL, OTHER)):
        cross_encoders.make_cross_encoder(
            root / name, "bert", seed=seed, hidden_size=256, num_hidden_layers=2
        )
    shutil.copy(root / MODEL / "tokenizer.json", root / OTHER)
    shutil.copy(root / MODEL / "config.json", root / OTHER)
    for seed, name in enumerate(NAMES):
        base = AutoModelForSequenceClassification.from_pretrained(root / MODEL)
        make_adapter(base, root / "lora" / name, seed=seed, r=128, target_modules=["query", "key", "value"])
    shutil.copytree(root / "lora/one", root / "lora/broken")
    weights = root / "lora/broken/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return root


@pytest.fixture(scope="module")
def sizes(made: Path) -> tuple[float, float]:
    """Return the sizes of the model and of an adapter in MiB."""

    async def measured() -> tuple[float, float]:
        async with within(made, 1000) as service:
            await ask(service)
            model = held(service)
            await ask(service, "one")
            return model, held(service) - model

    return asyncio.run(measured())


def within(made: Path, budget: float, **config: object) -> AbstractAsyncContextManager[Service]:
    adapters = tuple(f"{MODEL}:{name}={made / 'lora' / name}" for name in [*NAMES, "broken"])
    return serving(models_dir=str(made), adapter=adapters, memory_budget_mb=int(budget), **config)


def held(service: Service) -> float:
    return sum(info.memory_bytes for info in service.registry.infos()) / MIB


async def ask(service: Service, adapter: str | None = None, model: str = MODEL) -> tuple[float, ...]:
    return await scores(service, f"{model}:{adapter}" if adapter else model, QUERY, TEXTS)


def loaded(service: Service) -> list[str]:
    return [a.name for a in service.registry.info(MODEL).adapters if a.loaded]


def room_for(sizes: tuple[float, float], adapters: int) -> int:
    """Return a budget in MiB for the model and at most `adapters` adapters."""
    model, one = sizes
    budget = ceil(model + adapters * one)
    assert budget < model + (adapters + 1) * one
    return budget


async def test_four_adapters_in_a_budget_for_two(made: Path, sizes: tuple[float, float]) -> None:
    budget = room_for(sizes, 2)
    async with within(made, budget) as service:
        first = {name: await ask(service, name) for name in NAMES}
        for _ in range(2):
            for name in NAMES:
                assert await ask(service, name) == first[name]
                assert held(service) <= budget
        assert sorted(loaded(service)) == ["four", "three"]
        evicted = service.metrics.registry.get_sample_value("sie_adapter_evictions_total", {"model": MODEL})
        assert evicted and evicted >= 8


async def test_many_at_once_stay_within_the_budget(made: Path, sizes: tuple[float, float]) -> None:
    budget = room_for(sizes, 2)
    async with within(made, budget) as service:
        asking = asyncio.gather(*(ask(service, NAMES[i % 4]) for i in range(24)), return_exceptions=True)
        while not asking.done():
            assert held(service) <= budget
            # without a pause, this loop would keep the GIL from the loading threads
            await asyncio.sleep(1e-3)
        assert len({answer for answer in asking.result() if isinstance(answer, tuple)}) == 4
        assert all(isinstance(answer, tuple) for answer in asking.result())


async def test_idle_models_are_evicted_first(made: Path, sizes: tuple[float, float]) -> None:
    model, one = sizes
    async with within(made, ceil(2 * model + one)) as service:
        await ask(service, "one")
        await ask(service, model=OTHER)
        await ask(service, "two")
        assert service.registry.info(OTHER).state == "available" and loaded(service) == ["one", "two"]


async def test_idle_adapters_of_a_pinned_model_are_evicted_for_a_model(
    made: Path, sizes: tuple[float, float]
) -> None:
    model, one = sizes
    async with within(made, ceil(2 * model + 2 * one)) as service:
        await service.admin.load(MODEL, pin=True)
        for name in NAMES[:3]:
            await ask(service, name)
        assert await ask(service, model=OTHER) and loaded(service) == ["three", "two"]
        await ask(service, "one")
        await service.admin.swap(MODEL, str(made / OTHER))  # it fits once idle adapters are evicted
        assert service.registry.info(MODEL).source == str(made / OTHER)


async def test_an_adapter_loads_while_another_model_is_busy(made: Path, sizes: tuple[float, float]) -> None:
    model, one = sizes
    async with within(made, ceil(2 * model + 0.5 * one), load_wait_s=1.0) as service:
        over = False

        async def client() -> None:
            while not over:
                with suppress(SIEError):
                    await ask(service, model=OTHER)

        busy = [asyncio.create_task(client()) for _ in range(3)]
        await ask(service)
        await asyncio.sleep(0.1)
        answers = [await asyncio.gather(ask(service, "one"), return_exceptions=True) for _ in range(5)]
        over = True
        await asyncio.gather(*busy)
        assert any(isinstance(answer, tuple) for (answer,) in answers), answers


async def test_memory_freed_by_a_failed_adapter_is_used_at_once(
    made: Path, sizes: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, one = sizes
    failing = asyncio.Event()

    async def fail(*_: object) -> None:
        await failing.wait()
        raise ModelLoadFailed("broken", error_class="Broken", permanent=True, attempts=1)

    async with within(made, ceil(2 * model + 0.5 * one), load_wait_s=20) as service:
        monkeypatch.setattr(service._loader, "attach", fail)
        async with service.registry.lease(MODEL):
            adapter = asyncio.create_task(service.admin.load_adapter(MODEL, "one", str(made / "lora/one")))
            await until(lambda: held(service) > model + 0.5 * one)
            other = asyncio.create_task(ask(service, model=OTHER))
            await asyncio.sleep(0.1)
            failing.set()
            # without a wake-up, a waiting load checks again after 5 s
            assert await asyncio.wait_for(other, 3)
        with pytest.raises(ModelLoadFailed):
            await adapter


async def test_adapters_in_use_stay_and_are_named(made: Path, sizes: tuple[float, float]) -> None:
    async with within(made, room_for(sizes, 2), load_wait_s=0.4) as service:
        async with AsyncExitStack() as using:
            for name in NAMES[:2]:
                await using.enter_async_context(service.registry.lease(MODEL, name))
            with pytest.raises(
                ResourceExhausted, match=rf"adapter '{MODEL}:three' needs .* of .*held by"
            ) as no:
                await ask(service, "three")
            assert f"{sizes[1]:,.1f} MiB" in no.value.message and loaded(service) == ["one", "two"]
            waiting = asyncio.create_task(ask(service, "three"))
            await asyncio.sleep(0.03)
        assert len(await waiting) == 2  # it loads as soon as an adapter becomes idle
        assert len(loaded(service)) == 2


async def test_an_adapter_that_never_fits(made: Path, sizes: tuple[float, float]) -> None:
    async with within(made, int(sizes[0] + sizes[1])) as service:
        base = await ask(service)
        with pytest.raises(ModelLoadFailed, match=r"needs .* in addition to the .* of its model") as no:
            await ask(service, "one")
        assert no.value.details["error_class"] == "MemoryBudget" and no.value.details["permanent"]
        assert await ask(service) == base


async def test_an_adapter_that_fails_to_load_uses_no_memory(made: Path, sizes: tuple[float, float]) -> None:
    async with within(made, room_for(sizes, 1)) as service:
        await ask(service)
        before = held(service)
        for _ in range(3):
            with pytest.raises(ModelLoadFailed, match="truncated"):
                await ask(service, "broken")
        assert held(service) == before
        await ask(service, "two")


async def test_a_swap_keeps_adapters_that_fit_the_last_used_first(
    made: Path, sizes: tuple[float, float]
) -> None:
    model, one = sizes
    async with within(made, ceil(2 * model + 3 * one)) as service:
        await ask(service, "two")
        await ask(service, "one")
        await service.admin.swap(MODEL, str(made / OTHER))
        assert loaded(service) == ["one"]
        await ask(service, "two")
        assert loaded(service) == ["one", "two"]
