"""Loads, memory budget, swaps and unloads of a running service, with real checkpoints and threads but no HTTP."""

from __future__ import annotations

import asyncio
import gc
import itertools
import resource
import shutil
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from sie_server.engine.engine import BATCH_SIZES, Engine
from sie_server.errors import (
    Conflict,
    InvalidInput,
    ModelLoadFailed,
    ModelLoading,
    ModelNotFound,
    ResourceExhausted,
    SIEError,
)
from sie_server.serving.loading import loader
from sie_server.serving.service import Service
from support.checkpoints import cross_encoders
from support.servers import inprocess, processes
from support.servers.inprocess import Looks, occupy, scores
from support.waiting import until

QUERY, TEXTS = "how do stars burn", ["stars burn hydrogen", "rain falls tomorrow", "lawyers argue"]
MIB = 2**20
# one pair per pass, so that answers are equal bit for bit
serving = partial(inprocess.serving, batch_tokens=8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return three versions of a model of about 5 MiB, and checkpoints that must not replace them."""
    root = tmp_path_factory.mktemp("made")
    for seed, name in enumerate("abc"):
        cross_encoders.make_cross_encoder(
            root / name, "bert", seed=seed, hidden_size=256, num_hidden_layers=2
        )
    # one tokenizer for all, because training it again may give a different one
    for name in "bc":
        shutil.copy(root / "a/tokenizer.json", root / name)
        shutil.copy(root / "a/config.json", root / name)
    processes.poison(root / "nan", root / "a")
    processes.make_encoder(root / "encoder")
    for name in ("cut", "bare", "foreign"):
        shutil.copytree(root / "a", root / name)
    (root / "bare/model.safetensors").unlink()
    processes.edit_json(root / "foreign/config.json", architectures=["PhiForCausalLM"])
    weights = root / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return root


def size_of(directory: Path) -> float:
    """Return the size in MiB, which is nearly all weights, served in fp32."""
    return (directory / "model.safetensors").stat().st_size / MIB


def metric(service: Service, name: str, **labels: str) -> float:
    return service.metrics.registry.get_sample_value(name, labels) or 0.0


async def ask(service: Service, model: str = "m") -> tuple[float, ...]:
    return await scores(service, model, QUERY, TEXTS)


@contextmanager
def no_load_ends(service: Service) -> Iterator[None]:
    """Keep the load thread busy while the block runs."""
    gate = threading.Event()
    occupy(service._loader._loading, gate)
    try:
        yield
    finally:
        gate.set()


@asynccontextmanager
async def clients(service: Service, count: int, models: list[str]) -> AsyncIterator[list[Any]]:
    """Run clients that request the models in rotation without pause; yield their answers and errors."""
    answers: list[Any] = []
    over = False

    async def client(turns: Iterator[str]) -> None:
        while not over:
            try:
                answers.append(await ask(service, next(turns)))
            except SIEError as error:
                answers.append(error)

    tasks = [
        asyncio.create_task(client(itertools.cycle(models[i % len(models) :] + models[: i % len(models)])))
        for i in range(count)
    ]
    yield answers
    over = True
    await asyncio.gather(*tasks)


# ── loads ──


async def test_many_requests_load_once(made: Path) -> None:
    async with serving(models_dir=str(made)) as service:
        answers = await asyncio.gather(*(ask(service, "a") for _ in range(50)))
        assert len(set(answers)) == 1
        assert metric(service, "sie_model_loads_total", model="a") == 1


async def test_a_load_continues_after_its_requests_end(made: Path) -> None:
    async with serving(models_dir=str(made), load_wait_s=0.3) as service:
        with no_load_ends(service):
            gone = asyncio.create_task(ask(service, "a"))
            await until(lambda: service.registry.info("a").progress)
            gone.cancel()
            with pytest.raises(ModelLoading, match="loading") as caught:
                await ask(service, "a")
            assert (caught.value.retry_after_s or 0) >= 1
            info = service.registry.info("a")
            assert (info.state, info.loaded) == ("loading", False)
            assert info.progress is not None
            assert info.progress.phase == "load"
            assert info.progress.bytes_total == pytest.approx(size_of(made / "a") * MIB, rel=0.02)
        await until(lambda: service.registry.info("a").loaded)
        assert len(await ask(service, "a")) == 3
        assert metric(service, "sie_model_loads_total", model="a") == 1


async def test_a_loaded_model_uses_its_reserved_memory(made: Path) -> None:
    async with serving(models_dir=str(made)) as service:
        answer = await service.admin.load("a")
        assert answer.memory_bytes == pytest.approx(size_of(made / "a") * MIB, rel=0.02)
        assert metric(service, "sie_model_memory_bytes", model="a") == answer.memory_bytes
        assert (answer.state, answer.source, answer.pinned) == ("loaded", str(made / "a"), False)


async def test_the_batch_size_is_measured_once_for_a_shape(made: Path) -> None:
    async with serving(models_dir=str(made), batch_tokens=0) as service:
        with_sizes = []
        for name in "ab":
            await service.admin.load(name)
            async with service.registry.lease(name) as (engine, _):
                with_sizes.append((engine.batch_tokens, engine.tokens_per_second))
        [measured] = service._loader._measured.values()
        assert with_sizes == [measured[:2], measured[:2]]
        assert measured[0] in BATCH_SIZES[engine.device.type] and measured[1] > 0


async def test_downloads_do_not_delay_local_models(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, fetch = threading.Event(), loader.fetch

    def slow(source: str, **how: Any) -> Path:
        if not source.startswith("/"):
            gate.wait(30)
        return fetch(source, **how)

    monkeypatch.setattr(loader, "fetch", slow)
    names = [f"hub/{i}" for i in range(loader.DOWNLOADS + 1)]
    local = f"local={made / 'a'}"
    async with serving(model=(local, *names), load_wait_s=20) as service:
        downloads = [asyncio.create_task(ask(service, name)) for name in names]
        await asyncio.sleep(0.05)
        assert len(await ask(service, "local")) == len(TEXTS)
        assert not any(task.done() for task in downloads)
        gate.set()
        failures = await asyncio.gather(*downloads, return_exceptions=True)
        assert {type(failure) for failure in failures} == {ModelLoadFailed}


async def test_a_failed_load_is_cached_and_does_not_affect_other_models(made: Path) -> None:
    async with serving(models_dir=str(made)) as service:
        for _ in range(3):
            with pytest.raises(ModelLoadFailed, match=r"model\.safetensors"):
                await ask(service, "cut")
        assert metric(service, "sie_model_load_failures_total", model="cut") == 1
        with pytest.raises(ModelLoadFailed):
            await service.admin.load("cut")  # an operator's load retries at once
        assert metric(service, "sie_model_load_failures_total", model="cut") == 2
        assert service.registry.info("cut").memory_bytes == 0
        await ask(service, "a")


# ── the budget ──


def budget(made: Path, models: float) -> int:
    return round(models * size_of(made / "a") + 0.5)


async def test_three_models_in_a_budget_for_two(made: Path) -> None:
    async with serving(models_dir=str(made), memory_budget_mb=budget(made, 2)) as service:
        expected = {name: await ask(service, name) for name in "abc"}
        for name in "abcabcacb":
            assert await ask(service, name) == expected[name]
            assert sum(info.loaded for info in service.registry.infos()) <= 2
        assert sum(metric(service, "sie_model_evictions_total", model=name) for name in "abc") >= 8
        held = sum(metric(service, "sie_model_memory_bytes", model=name) for name in "abc")
        assert held <= metric(service, "sie_memory_budget_bytes") == budget(made, 2) * MIB


async def test_three_busy_models_in_a_budget_for_two(made: Path) -> None:
    """No model is ever idle, so the one loaded longest is drained each time."""
    settings = {"memory_budget_mb": budget(made, 2), "load_wait_s": 8.0}
    async with serving(models_dir=str(made), **settings) as service:
        seen: dict[str, int] = dict.fromkeys("abc", 0)

        async def client(name: str) -> None:
            while not all(seen.values()):
                await ask(service, name)
                seen[name] += 1

        await asyncio.wait_for(asyncio.gather(*(client(name) for name in "abc" * 4)), 60)
        assert all(seen.values())


@contextmanager
def slow_loads(monkeypatch: pytest.MonkeyPatch, seconds: float) -> Iterator[None]:
    load = loader.load_engine

    def slow(*args: Any, **kwargs: Any) -> Engine:
        time.sleep(seconds)
        return load(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loader, "load_engine", slow)
        yield


async def test_loads_longer_than_the_patience_for_a_gap(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models compete for memory for one: each load answers its waiting requests and serves for a while."""
    with slow_loads(monkeypatch, 0.4):
        async with (
            serving(
                models_dir=str(made), memory_budget_mb=round(size_of(made / "a")) + 1, load_wait_s=1.0
            ) as service,
            clients(service, 2, ["a"]) as first,
            clients(service, 2, ["b"]) as second,
        ):
            await until(
                lambda: min(metric(service, "sie_model_loads_total", model=name) for name in "ab") >= 3,
                within=60,
            )
    for answers in (first, second):
        good = [answer for answer in answers if isinstance(answer, tuple)]
        # each load answers more than the requests that waited for it
        assert len(set(good)) == 1 and len(good) > 3 * 2 * 3, answers


async def test_a_pin_applies_while_the_model_loads(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with slow_loads(monkeypatch, 0.4):
        async with serving(
            models_dir=str(made), memory_budget_mb=round(size_of(made / "a")) + 1, load_wait_s=1.0
        ) as service:
            other = asyncio.create_task(service.admin.load("b"))
            pinned = await service.admin.load("a", pin=True)
            assert (pinned.state, pinned.pinned) == ("loaded", True)
            await asyncio.gather(other, return_exceptions=True)
            assert service.registry.info("a").loaded
            with pytest.raises(ModelLoadFailed):
                await service.admin.load("cut", pin=True)
            assert not service.registry.info("cut").pinned


async def test_a_load_after_an_unload_uses_the_latest_configuration(
    made: Path, tmp_path: Path, looks: Looks
) -> None:
    def write(source: str) -> None:
        entry = {"id": "m", "source": str(made / source), "license": "mit", "description": source,
                 "outputs": ["score"], "max_seq_length": 64}  # fmt: skip
        (tmp_path / "m.yaml").write_text(yaml.safe_dump(entry))

    write("a")
    async with serving(models_dir=str(tmp_path), models_dir_poll_s=0.02) as service:
        await ask(service)
        async with service.registry.lease("m"):
            unloading = asyncio.create_task(service.admin.unload("m"))
            await asyncio.sleep(0.05)
            write("b")
            await looks.wait()
            assert looks.begun == ["m"]  # the change also waits for the unload
            assert service.registry.info("m").source == str(made / "a")
            load = asyncio.create_task(service.admin.load("m"))
            await asyncio.sleep(0.05)
        await unloading
        await load
        await until(lambda: service.registry.info("m").source == str(made / "b"))
        async with serving(model=(f"b={made / 'b'}",)) as plain:
            assert await ask(service) == await ask(plain, "b")


async def test_a_successful_load_resets_the_count_of_attempts(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "a", tmp_path / "m")
    async with serving(model=(f"m={tmp_path / 'm'}",)) as service:
        for _ in range(3):
            await service.admin.load("m")
            await service.admin.unload("m")
        shutil.copy(made / "cut/model.safetensors", tmp_path / "m")
        with pytest.raises(ModelLoadFailed) as failure:
            await ask(service)
        assert failure.value.details["attempts"] == 1


async def test_embedded_weights_can_be_named_by_their_shown_source(made: Path) -> None:
    async with serving(source_roots=(str(made),)) as service:
        shown = service.registry.info("sie/mini-en").source
        assert (
            shown == "embedded:mini-en" and (await service.admin.load("sie/mini-en", shown)).source == shown
        )
        with pytest.raises(InvalidInput, match="neither an absolute path nor a hub id"):
            await service.admin.load("my/model", "embedded:../mini-en")


async def test_pins_are_kept_and_named(made: Path) -> None:
    async with serving(models_dir=str(made), memory_budget_mb=budget(made, 2)) as service:
        await service.admin.load("a", pin=True)
        for name in "bcb":
            await ask(service, name)
        assert service.registry.info("a").pinned and service.registry.info("a").loaded
        await service.admin.load("b", pin=True)
        with pytest.raises(ResourceExhausted, match=r"MiB of .*memory_budget_mb.*a .*pinned"):
            await ask(service, "c")
        await service.admin.load("a", pin=False)
        await ask(service, "c")
        assert not service.registry.info("a").loaded


async def test_a_model_larger_than_the_budget(made: Path) -> None:
    async with serving(models_dir=str(made), memory_budget_mb=2) as service:
        with pytest.raises(ModelLoadFailed, match=r"needs [\d.]+ MiB.*2\.0 MiB \(memory_budget_mb\)"):
            await ask(service, "a")


async def test_models_in_use_are_waited_for_and_then_named(made: Path) -> None:
    settings = {"memory_budget_mb": budget(made, 1), "load_wait_s": 0.4}
    async with serving(models_dir=str(made), **settings) as service:
        async with service.registry.lease("a"):
            assert [a.in_use for a in service.registry.slot("a").allocations()] == [True]
            with pytest.raises(ResourceExhausted, match=r"in use: a ") as caught:
                await ask(service, "b")
            assert (caught.value.retry_after_s or 0) >= 1
            await until(lambda: service.registry.slot("b").task is None)  # the load that failed
        assert (await service.admin.load("b")).state == "loaded"


async def test_idle_models_are_unloaded_and_pinned_ones_are_not(made: Path) -> None:
    async with serving(models_dir=str(made), idle_unload_s=0.3) as service:
        await service.admin.load("a", pin=True)
        before = await ask(service, "b")
        await until(lambda: service.registry.info("b").state == "available")
        assert service.registry.info("a").loaded
        assert await ask(service, "b") == before


async def test_running_out_of_memory_while_loading(made: Path, tmp_path: Path) -> None:
    """The process may only add address space for three quarters of the new version's memory."""
    wide = cross_encoders.make_cross_encoder(
        tmp_path / "wide", "bert", hidden_size=1024, num_hidden_layers=8, intermediate_size=4096
    )
    processes.edit_weights(wide, lambda w: w.update({name: t.bfloat16() for name, t in w.items()}))
    async with serving(models_dir=str(made), source_roots=(str(tmp_path),)) as service:
        before = await ask(service, "a")
        need = await service.admin.load("wide", str(wide))
        await service.admin.unload("wide")
        taken = psutil.Process().memory_info().vms
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (taken + need.memory_bytes * 3 // 4, limits[1]))
        try:
            with pytest.raises(ResourceExhausted, match="out of memory while loading"):
                await service.admin.swap("a", str(wide))
            assert await ask(service, "a") == before
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
        info = service.registry.info("a")
        assert info.source == str(made / "a")
        assert info.memory_bytes == pytest.approx(size_of(made / "a") * MIB, rel=0.02)


# ── unloading ──


async def test_unloading_waits_for_requests_and_frees_the_engine(made: Path) -> None:
    async with serving(models_dir=str(made)) as service:
        async with service.registry.lease("a") as (engine, _):
            gone = weakref.ref(engine)
            unloading = asyncio.create_task(service.admin.unload("a"))
            await until(lambda: service.registry.info("a").state == "unloading")
            new = asyncio.create_task(ask(service, "a"))
            await asyncio.sleep(0.05)
            assert not unloading.done() and not new.done()
            del engine
        answer = await unloading
        assert answer.memory_bytes == 0 or answer.state in ("loading", "loaded")
        assert len(await new) == 3  # this request came during the unload and loads the model again
        gc.collect()
        assert gone() is None
        assert (await service.admin.unload("a")).state == "available"
        assert (await service.admin.unload("a")).state == "available"


async def test_unloading_waits_for_a_pass_of_a_cancelled_request(made: Path) -> None:
    """The lease has ended but the device still uses the weights, which are freed only after the pass."""
    async with serving(models_dir=str(made)) as service:
        await ask(service, "a")
        started, gate, engines = threading.Event(), threading.Event(), []

        def hold(engine: Engine) -> None:
            engines.append(weakref.ref(engine))
            run = engine.run

            def held(works: list[Any]) -> list[Any]:
                started.set()
                gate.wait(30)
                return run(works)

            engine.run = held  # type: ignore[method-assign]

        async with service.registry.lease("a") as (engine, _):
            hold(engine)
            del engine
        caller = asyncio.create_task(ask(service, "a"))
        await asyncio.to_thread(started.wait, 30)
        caller.cancel()
        await asyncio.wait([caller])
        unloading = asyncio.create_task(service.admin.unload("a"))
        await asyncio.sleep(0.1)
        assert not unloading.done() and engines[0]() is not None
        gate.set()
        await unloading
        del caller  # its traceback refers to the engine
        gc.collect()
        assert engines[0]() is None


# ── swaps ──


@pytest.mark.slow
@pytest.mark.parametrize(("batch_tokens", "tolerance"), [(8, 0.0), (2048, 1e-4)])
async def test_swapping_under_load_mixes_no_versions(made: Path, batch_tokens: int, tolerance: float) -> None:
    """Answers are exact with one pair per pass, and differ in shared batches by far less than A and B do."""
    config: dict[str, Any] = {"source_roots": (str(made),), "batch_tokens": batch_tokens}
    async with serving(model=(f"m={made / 'a'}",), **config) as service:
        await service.operations.preload()
        versions = {"a": await ask(service)}
        await service.admin.swap("m", str(made / "b"))
        versions["b"] = await ask(service)
        # tokenizer training varies between runs, so check that the versions differ enough for every text
        assert all(abs(a - b) > 10 * max(tolerance, 1e-4) for a, b in zip(*versions.values(), strict=True))

        def same(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
            return all(abs(a - b) <= tolerance for a, b in zip(one, other, strict=True))

        async with clients(service, 16, ["m"]) as answers:
            for number in range(10):
                name = "ab"[number % 2]
                assert (await service.admin.swap("m", str(made / name))).source == str(made / name)
                assert same(await ask(service), versions[name])
        failed = [answer for answer in answers if isinstance(answer, SIEError)]
        assert not failed
        counts = {name: sum(same(a, answer) for a in answers) for name, answer in versions.items()}
        assert sum(counts.values()) == len(answers) and all(counts.values()), counts
        assert metric(service, "sie_model_swaps_total", model="m") == 11
        await until(lambda: service.registry.info("m").memory_bytes < 1.5 * size_of(made / "a") * MIB)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cut", r"model\.safetensors"),
        ("nan", "finite"),
        ("encoder", "dense.*score"),
        ("nothing", "No such file"),
        ("bare", "no weights"),
        ("foreign", "PhiForCausalLM"),
    ],
)
async def test_a_swap_that_fails_leaves_the_old_version(made: Path, name: str, words: str) -> None:
    async with serving(models_dir=str(made)) as service:
        before = await ask(service, "a")
        async with clients(service, 4, ["a"]) as answers:
            with pytest.raises(ModelLoadFailed, match=words):
                await service.admin.swap("a", str(made / name))
            await asyncio.sleep(0.05)
        assert set(answers) == {before}
        info = service.registry.info("a")
        assert info.loaded and info.source == str(made / "a") and info.last_error
        assert info.memory_bytes == pytest.approx(size_of(made / "a") * MIB, rel=0.02)


async def test_two_swaps_at_once(made: Path) -> None:
    async with serving(models_dir=str(made)) as service:
        before = await ask(service, "a")
        with no_load_ends(service):
            first = asyncio.create_task(service.admin.swap("a", str(made / "b")))
            await until(lambda: service.registry.info("a").progress)
            for other in (
                service.admin.swap("a", str(made / "c")),
                service.admin.unload("a"),
                service.admin.load("a"),
            ):
                with pytest.raises(Conflict, match="being swapped"):
                    await other
            assert await ask(service, "a") == before
        assert (await first).state == "loaded"


async def test_a_swap_that_has_no_room(made: Path) -> None:
    settings = {"memory_budget_mb": budget(made, 1.5), "load_wait_s": 0.3}
    async with serving(models_dir=str(made), **settings) as service:
        before = await ask(service, "a")
        with pytest.raises(ResourceExhausted, match="memory_budget_mb"):
            await service.admin.swap("a", str(made / "b"))
        assert await ask(service, "a") == before
        assert service.registry.info("a").source == str(made / "a")


async def test_swap_and_load_of_missing_models_and_files(made: Path) -> None:
    async with serving(models_dir=str(made)) as service:
        with pytest.raises(ModelNotFound):
            await service.admin.swap("unknown", str(made / "a"))
        with pytest.raises(ModelNotFound):
            await service.admin.load("unknown")
        # a swap of a model that is not loaded just loads it
        assert (await service.admin.swap("a", str(made / "b"))).source == str(made / "b")
        await service.admin.load("new", str(made / "c"))
        assert await ask(service, "new") == await ask(service, "c")
        with pytest.raises(Conflict, match="swap"):
            await service.admin.load("new", str(made / "a"))
        with pytest.raises(ModelLoadFailed, match="truncated"):
            await service.admin.load("broken", str(made / "cut"))
        with pytest.raises(ModelLoadFailed, match="File name too long"):
            await service.admin.load("broken", str(made / ("x" * 300)))
        assert "broken" not in service.registry


@pytest.mark.parametrize(
    "source",
    ["/etc", "../made", "{made}/../a", "./a", "~", "~root", "{made}/out", "a/../../b", "org/..", "name", "a/b/c",
     "org/na\nme", "\\\\host\\share", "{made}\0",
     "x" * 400, "org/" + "x" * 400, "/" + "x" * 400],
)  # fmt: skip
async def test_sources_outside_of_the_roots(made: Path, tmp_path: Path, source: str) -> None:
    root = tmp_path / "made"
    root.mkdir()
    (root / "out").symlink_to(made)
    async with serving(source_roots=(str(root),)) as service:
        with pytest.raises(InvalidInput, match=r"\$\.source"):
            await service.admin.load("new", source.replace("{made}", str(root)))
        with pytest.raises(InvalidInput, match=r"\$\.source"):
            await service.admin.swap("sie/mini-en", source.replace("{made}", str(root)))


async def test_ids_and_revisions_of_admin_callers(made: Path) -> None:
    async with serving(models_dir=str(made)) as service:
        for name in ("../a", "/a", "a\nb", "x" * 300):
            with pytest.raises(InvalidInput, match=r"\$\.model"):
                await service.admin.load(name, str(made / "a"))
        for source, revision in ((str(made / "a"), "v1"), ("org/name", "../../x"), ("org/name", "a\nb")):
            with pytest.raises(InvalidInput, match=r"\$\.revision"):
                await service.admin.load("new", source, revision)


# ── the models directory ──


async def test_files_added_changed_and_removed(made: Path, tmp_path: Path, looks: Looks) -> None:
    def write(weights: str) -> None:
        entry = {"id": "m", "source": str(made / weights), "license": "mit", "description": "",
                 "outputs": ["score"], "max_seq_length": 64}  # fmt: skip
        (tmp_path / "m.yaml").write_text(yaml.safe_dump(entry))

    async with serving(models_dir=str(tmp_path), models_dir_poll_s=0.05) as service:
        write("a")
        await until(lambda: "m" in service.registry)
        first = await ask(service)
        async with clients(service, 4, ["m"]) as answers:
            write("b")
            await until(lambda: service.registry.info("m").source == str(made / "b"))
            second = await ask(service)
            write("cut")
            await until(lambda: service.registry.info("m").last_error)
            (tmp_path / "m.yaml").write_text("id: [")
            await looks.wait()
            assert await ask(service) == second
        assert set(answers) == {first, second}
        (tmp_path / "m.yaml").unlink()
        await until(lambda: "m" not in service.registry)
        with pytest.raises(ModelNotFound):
            await ask(service)


async def test_a_model_added_by_an_admin_and_the_directory_at_once(
    made: Path, tmp_path: Path, looks: Looks
) -> None:
    """An admin's load of a new id fails while the directory adds a model of this id, which stays known."""
    async with serving(
        models_dir=str(tmp_path), source_roots=(str(made),), models_dir_poll_s=0.05
    ) as service:
        with no_load_ends(service):
            loading = asyncio.create_task(service.admin.load("m", str(made / "cut")))
            await until(lambda: "m" in service.registry)
            shutil.copytree(made / "a", tmp_path / "m")
            await looks.wait()
            assert looks.begun == ["m"]  # the change waits for the load
        with pytest.raises(ModelLoadFailed):
            await loading
        assert len(await ask(service)) == 3
        shutil.rmtree(tmp_path / "m")
        await until(lambda: "m" not in service.registry)
        shutil.copytree(made / "b", tmp_path / "m2")
        await until(lambda: "m2" in service.registry)


async def test_a_removed_model_is_counted_until_all_its_versions_are_free(made: Path) -> None:
    async with serving(models_dir=str(made)) as service:
        await service.admin.load("a")
        async with service.registry.lease("a"):
            await service.admin.swap("a", str(made / "b"))
            removing = asyncio.create_task(service.operations.remove("a"))
            await until(lambda: len(service.registry.table.allocations()) == 1)
            await asyncio.sleep(0.1)
            assert not removing.done()
        await removing
        assert service.registry.table.allocations() == []


async def test_overwritten_files_replace_a_loaded_model_only_when_complete(
    made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "a", tmp_path / "m")
    async with serving(models_dir=str(tmp_path), models_dir_poll_s=0.1) as service:
        first = await ask(service)
        async with clients(service, 4, ["m"]) as answers:
            shutil.copyfile(made / "b/model.safetensors", tmp_path / "m/model.safetensors")
            await until(lambda: metric(service, "sie_model_swaps_total", model="m"))
            second = await ask(service)
        assert first != second
        assert set(answers) == {first, second}
