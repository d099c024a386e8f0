"""The watcher of the models directory: changes that fail, take long, or need no load."""

from __future__ import annotations

import asyncio
import logging
import shutil
from functools import partial
from pathlib import Path

import pytest
import yaml

from sie_server.catalog import ModelConfig
from sie_server.errors import Conflict, ModelLoadFailed
from sie_server.serving.operators import watcher
from sie_server.serving.service import Service
from support.checkpoints import cross_encoders
from support.servers import inprocess, processes
from support.servers.inprocess import Looks, scores
from support.waiting import until

MIB = 2**20
serving = partial(inprocess.serving, batch_tokens=8, models_dir_poll_s=0.05)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return two versions of a model, and checkpoints that must not replace them."""
    root = tmp_path_factory.mktemp("made")
    for seed, name in enumerate("ab"):
        cross_encoders.make_cross_encoder(
            root / name, "bert", seed=seed, hidden_size=256, num_hidden_layers=2
        )
    for name in ("tokenizer.json", "config.json"):
        shutil.copy(root / "a" / name, root / "b")
    processes.make_encoder(root / "encoder")
    return root


def write(folder: Path, name: str, source: Path | str, **changes: object) -> None:
    entry = {"id": name, "source": str(source), "license": "mit", "description": "",
             "outputs": ["score"], "max_seq_length": 64}  # fmt: skip
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(entry | changes))


def count(service: Service, name: str, model: str) -> float:
    return service.metrics.registry.get_sample_value(name, {"model": model}) or 0.0


async def ask(service: Service, model: str = "m") -> tuple[float, ...]:
    return await scores(service, model, "how do stars burn", ["stars burn hydrogen", "rain falls"])


async def test_a_removed_model_is_not_replaced_by_a_hub_id(made: Path, tmp_path: Path, looks: Looks) -> None:
    shutil.copytree(made / "a", tmp_path / "org/m")
    async with serving(models_dir=str(tmp_path), model=("org/m",)) as service:
        await service.operations.preload()
        first = await ask(service, "org/m")
        shutil.move(tmp_path / "org/m", tmp_path / ".m")
        await until(lambda: "org/m" not in service.registry)
        await looks.wait()
        assert "org/m" not in service.registry and ".m" not in service.registry
        shutil.move(tmp_path / ".m", tmp_path / "org/m")
        await until(lambda: "org/m" in service.registry)
        assert await ask(service, "org/m") == first


async def test_changes_that_need_no_load_apply_at_once(made: Path, tmp_path: Path) -> None:
    write(tmp_path, "m", made / "a")
    async with serving(models_dir=str(tmp_path)) as service:
        first, loaded = await ask(service), service.registry.slot("m").serving
        told = {
            "description": "new",
            "profiles": {"fast": {"max_seq_length": 16}},
            "adapters": {"x": "org/x"},
        }
        write(tmp_path, "m", made / "a", **told)
        await until(lambda: service.registry.info("m").description == "new")
        info = service.registry.info("m")
        assert "fast" in info.profiles and [adapter.name for adapter in info.adapters] == ["x"]
        assert service.registry.slot("m").serving is loaded and await ask(service) == first
        write(tmp_path, "m", made / "a", max_seq_length=32)
        await until(lambda: service.registry.info("m").max_sequence_length == 32)
    assert count(service, "sie_model_swaps_total", "m") == 1


async def test_the_next_load_uses_a_version_that_could_not_be_swapped_in(made: Path, tmp_path: Path) -> None:
    write(tmp_path, "m", made / "a")
    async with serving(models_dir=str(tmp_path)) as service:
        first = await ask(service)
        write(tmp_path, "m", made / "encoder")  # has other outputs
        await until(lambda: service.registry.info("m").last_error)
        assert await ask(service) == first and service.registry.info("m").source == str(made / "a")
        await service.admin.unload("m")
        info = service.registry.info("m")
        assert info.source == str(made / "encoder") and "unload 'm' first" in (info.last_error or "")
        assert (await service.admin.load("m")).source == str(made / "encoder")


async def test_a_change_that_did_not_fit_in_memory_is_retried(
    made: Path, tmp_path: Path, looks: Looks
) -> None:
    write(tmp_path, "m", made / "a")
    write(tmp_path, "other", made / "b")
    size = (made / "a/model.safetensors").stat().st_size / MIB
    settings = {"memory_budget_mb": round(2 * size + 0.5), "load_wait_s": 0.1}
    async with serving(models_dir=str(tmp_path), **settings) as service:
        await service.admin.load("m")
        await service.admin.load("other")
        async with service.registry.lease("other"):
            write(tmp_path, "m", made / "b")
            await until(lambda: "memory_budget_mb" in (service.registry.info("m").last_error or ""))
            assert service.registry.info("m").source == str(made / "a")
        looks.ahead_s = watcher.RETRY_S
        await until(lambda: service.registry.info("m").source == str(made / "b"))
        assert service.registry.info("m").last_error is None


async def test_an_admin_request_overrides_a_failed_change(made: Path, tmp_path: Path, looks: Looks) -> None:
    write(tmp_path, "m", made / "a")
    async with serving(models_dir=str(tmp_path), source_roots=(str(made),)) as service:
        await service.admin.load("m")
        write(tmp_path, "m", "org/not-there")
        await until(lambda: service.registry.info("m").last_error)
        failures = count(service, "sie_model_load_failures_total", "m")
        looks.ahead_s = watcher.RETRY_S
        await until(lambda: count(service, "sie_model_load_failures_total", "m") > failures)
        assert looks.begun == ["m", "m"]  # the change and one retry; the next is not due yet
        await service.admin.swap("m", str(made / "b"))
        looks.ahead_s = 2 * watcher.LONGEST_RETRY_S
        await looks.wait()
        assert looks.begun == ["m", "m", "m"]
        await until(lambda: looks.under_way == 0)
        assert service.registry.info("m").source == str(made / "b")
        assert count(service, "sie_model_load_failures_total", "m") == failures + 1


async def test_a_changed_description_keeps_the_weights_chosen_by_an_admin(made: Path, tmp_path: Path) -> None:
    write(tmp_path, "m", made / "a")
    async with serving(models_dir=str(tmp_path), source_roots=(str(made),)) as service:
        first = await ask(service)
        await service.admin.swap("m", str(made / "b"))
        second = await ask(service)
        write(tmp_path, "m", made / "a", description="in other words")
        await until(lambda: service.registry.info("m").description)
        assert await ask(service) == second != first
        await service.admin.unload("m")
        write(tmp_path, "m", made / "a", description="once more")
        await until(lambda: service.registry.info("m").description == "once more")
        assert await ask(service) == second
        assert count(service, "sie_model_swaps_total", "m") == 1
        write(tmp_path, "m", made / "a", max_seq_length=32)  # now the file changes a setting of the weights
        await until(lambda: service.registry.info("m").source == str(made / "a"))


async def test_a_slow_change_does_not_delay_others(made: Path, tmp_path: Path, looks: Looks) -> None:
    write(tmp_path, "slow", made / "a")
    async with serving(models_dir=str(tmp_path)) as service:
        async with service.registry.lease("slow"):
            (tmp_path / "slow.yaml").unlink()
            await until(lambda: "slow" not in service.registry)
            write(tmp_path, "other", made / "b")
            await until(lambda: "other" in service.registry)
            write(tmp_path, "slow", made / "b")
            await looks.wait()
            assert "slow" not in service.registry
        await until(lambda: "slow" in service.registry)
        assert await ask(service, "slow") == await ask(service, "other")


async def test_errors_do_not_stop_the_watcher(made: Path, caplog: pytest.LogCaptureFixture) -> None:
    looks = 0

    def look() -> dict[str, ModelConfig]:
        nonlocal looks
        looks += 1
        if looks < 5:
            raise KeyError("unforeseen") if looks < 3 else FileNotFoundError("no such directory")
        return {"m": ModelConfig("m", str(made / "a"))}

    with caplog.at_level(logging.INFO, "sie_server.watching"):
        async with inprocess.serving() as service:
            task = asyncio.create_task(watcher.watch(look, {}, service.operations, 0.01))
            await until(lambda: "m" in service.registry)
            task.cancel()
    said = [record.getMessage() for record in caplog.records]
    assert [any(word in line for line in said) for word in ("unforeseen", "no such", "again")] == [True] * 3
    assert len(said) == 4, said  # each error once, and the new model


async def test_a_model_loaded_at_start_may_already_be_in_use(made: Path) -> None:
    named = (f"m={made / 'a'}", f"n={made / 'encoder'}", "gone")
    async with serving(model=named, models_dir=str(made), source_roots=(str(made),)) as service:
        await service.admin.load("m")
        swapping = asyncio.create_task(service.admin.swap("m", str(made / "b")))
        other = asyncio.create_task(service.admin.load("n", str(made / "a")))
        await asyncio.sleep(0)
        with pytest.raises(ModelLoadFailed, match="gone"):
            await service.operations.preload()
        await asyncio.gather(swapping, other)
        assert [service.registry.info(name).source for name in "mn"] == [str(made / "b"), str(made / "a")]


async def test_a_conflict_names_an_embedded_model_by_its_public_name(made: Path) -> None:
    async with serving(source_roots=(str(made),)) as service:
        await service.admin.load("sie/mini-en")
        with pytest.raises(Conflict, match="loaded from 'embedded:mini-en'"):
            await service.admin.load("sie/mini-en", str(made / "a"))
