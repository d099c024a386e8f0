"""LoRA adapters of a running service: naming, loading on demand, limits, and swaps of their model."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from starlette.testclient import TestClient
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from sie_server.catalog import ModelConfig, catalog
from sie_server.engine.lora import patterns
from sie_server.engine.lora.adapter import Adapter
from sie_server.errors import AdapterNotFound, Conflict, ModelLoadFailed, ModelLoading, SIEError
from sie_server.serving.loading.loader import READERS, Loader, base_names
from sie_server.serving.service import Service
from support.checkpoints import cross_encoders
from support.checkpoints.colbert import make_pylate
from support.families.adapters import make_adapter, under
from support.servers import inprocess, processes
from support.servers.inprocess import ask, asking, in_order, occupy, post
from support.servers.processes import Server
from support.waiting import until

QUERY, TEXTS = "how do stars burn", ["stars burn hydrogen", "rain falls tomorrow", "lawyers argue", ""]
NAMES = ["laws", "stars", "cooking"]
MODEL, ENCODER = "toy/bert", "toy/encoder"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cross-encoder, another version of it, an encoder, and adapters for each."""
    root = tmp_path_factory.mktemp("adapters")
    bert = cross_encoders.make_cross_encoder(root / MODEL, "bert")
    other = cross_encoders.make_cross_encoder(root / "toy/other", "bert", seed=5)
    for name in ("tokenizer.json", "config.json"):  # training a tokenizer again may give a different one
        shutil.copy(bert / name, other)
    wide = cross_encoders.make_cross_encoder(root / "toy/wide", "bert", hidden_size=64)
    encoder = processes.make_encoder(root / ENCODER)
    target = {"r": 4, "target_modules": ["query", "value", "dense"]}
    for seed, name in enumerate(NAMES):
        base = AutoModelForSequenceClassification.from_pretrained(bert)
        make_adapter(base, root / "lora" / name, seed=seed, **target)
    make_adapter(AutoModelForSequenceClassification.from_pretrained(wide), root / "lora/wide", **target)
    make_adapter(AutoModel.from_pretrained(encoder), root / "lora/encoder", **target)
    broken = root / "lora/broken"
    shutil.copytree(root / "lora/laws", broken)
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return root


def flags(made: Path, *names: str) -> tuple[str, ...]:
    return tuple(f"{MODEL}:{name}={made / 'lora' / name}" for name in names)


@pytest.fixture(scope="module")
def client(made: Path) -> Iterator[TestClient]:
    adapters = (*flags(made, *NAMES, "wide", "broken"), f"{ENCODER}:own={made / 'lora/encoder'}")
    with asking({}, models_dir=str(made), adapter=adapters) as client:
        yield client


def scores(client: TestClient, model: str = MODEL, **options: Any) -> list[float]:
    return in_order(ask(client, model, QUERY, TEXTS, **options))


@pytest.mark.parametrize("name", NAMES)
def test_scores_with_an_adapter_equal_peft(client: TestClient, made: Path, name: str) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(made / MODEL, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(made / MODEL)
    inputs = tokenizer([QUERY] * len(TEXTS), TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = under(model, made / "lora" / name)(**inputs).logits[:, 0].tolist()
    found = scores(client, lora=name, normalize="none")
    assert found == pytest.approx(expected, abs=1e-4)
    assert max(abs(a - b) for a, b in zip(found, scores(client, normalize="none"), strict=True)) > 0.05


def test_the_three_ways_to_name_an_adapter_are_equivalent(client: TestClient) -> None:
    base = scores(client)
    found = scores(client, lora="laws")
    assert found == scores(client, lora_id="laws") == scores(client, f"{MODEL}:laws") != base
    assert found == scores(client, f"{MODEL}:laws", lora="laws", lora_id="laws")
    assert ask(client, f"{MODEL}:laws", QUERY, TEXTS)["model"] == f"{MODEL}:laws"
    assert scores(client) == base == scores(client, lora=None)


def test_encode_and_openai_embeddings(client: TestClient) -> None:
    body = {"items": [{"text": text} for text in TEXTS]}

    def dense(model: str, **options: Any) -> Any:
        asked = body | {"params": {"options": options}}
        return [item["dense"]["values"] for item in post(client, f"/v1/encode/{model}", asked)["items"]]

    assert dense(ENCODER, lora="own") == dense(f"{ENCODER}:own") != dense(ENCODER)
    data = post(client, "/v1/embeddings", {"model": f"{ENCODER}:own", "input": TEXTS})["data"]
    assert [row["embedding"] for row in data] == dense(ENCODER, lora="own")


@pytest.mark.parametrize("route", ["score", "inspect"])
def test_an_unknown_adapter_is_a_404_with_a_hint(client: TestClient, route: str) -> None:
    body = {"query": {"text": QUERY}, "items": [{"text": "a"}], "options": {"lora": "lawz"}}
    error = post(client, f"/v1/{route}/{MODEL}", body, 404)["error"]
    assert error["code"] == "ADAPTER_NOT_FOUND" and "'laws'" in error["message"]
    assert (
        "'laws'"
        in post(client, f"/v1/{route}/{MODEL}:lawz", body | {"options": None}, 404)["error"]["message"]
    )
    del body["options"]
    assert post(client, f"/v1/{route}/toy/nobody:laws", body, 404)["code"] == "MODEL_NOT_FOUND"


@pytest.mark.parametrize("options", [{"lora": ""}, {"lora_id": ""}, {}])
def test_an_empty_name_is_an_unknown_adapter_and_not_the_base_model(
    client: TestClient, options: dict[str, str]
) -> None:
    """A request for an adapter must never receive the base model's scores."""
    name, items = MODEL if options else f"{MODEL}:", [{"text": "a"}]
    body = {"query": {"text": QUERY}, "items": items, "options": options}
    for route in ("score", "inspect"):
        error = post(client, f"/v1/{route}/{name}", body, 404)["error"]
        assert error["code"] == "ADAPTER_NOT_FOUND" and "no adapter ''" in error["message"]
    encode = {"items": items, "params": {"options": options}}
    name = ENCODER if options else f"{ENCODER}:"
    assert post(client, f"/v1/encode/{name}", encode, 404)["error"]["code"] == "ADAPTER_NOT_FOUND"
    if not options:
        rerank = {"model": f"{MODEL}:", "query": QUERY, "documents": TEXTS}
        assert "no adapter ''" in post(client, "/v2/rerank", rerank, 404)["message"]
        post(client, "/v1/embeddings", {"model": name, "input": TEXTS}, 404)


async def test_an_unknown_name_loads_nothing(made: Path) -> None:
    async with serving(made) as service:
        with pytest.raises(AdapterNotFound):
            await raw(service, f"{MODEL}:lawz")
        assert service.registry.info(MODEL).state == "available"


def test_a_model_can_be_looked_up_under_the_name_that_scores(client: TestClient) -> None:
    model = client.get(f"/v1/models/{MODEL}").json()
    name = f"{MODEL}:laws"
    assert client.get(f"/v1/models/{name}").json() == model | {"name": name, "id": name, "parent": MODEL}
    assert client.get(f"/v1/models/{MODEL}:lawz").json()["error"]["code"] == "ADAPTER_NOT_FOUND"


def test_other_vendors_clients_name_an_adapter_in_the_models_id(client: TestClient) -> None:
    body = {"model": f"{MODEL}:laws", "query": QUERY, "documents": TEXTS}

    def counted() -> str:
        lines = client.get("/metrics").text.splitlines()
        return next(
            (s for s in lines if f'sie_requests_total{{model="{MODEL}",route="v2/rerank",status="200"' in s),
            "",
        )

    before, hits = counted(), post(client, "/v2/rerank", body)["results"]
    found = [hit["relevance_score"] for hit in sorted(hits, key=lambda hit: int(hit["index"]))]
    expected = scores(client, lora="laws", normalize="sigmoid")
    assert found == pytest.approx(expected, abs=1e-6) != scores(client, normalize="sigmoid")
    assert counted() not in ("", before)  # counted under the model's own id
    error = post(client, "/v2/rerank", body | {"model": f"{MODEL}:lawz"}, 404)
    assert set(error) == {"message"} and "'laws'" in error["message"]


def test_two_different_names_are_refused(client: TestClient) -> None:
    for options in ({"lora": "laws", "lora_id": "stars"},):
        assert "$.options.lora" in ask(client, MODEL, QUERY, TEXTS, 400, **options)["error"]["message"]
    assert (
        "$.options.lora" in ask(client, f"{MODEL}:laws", QUERY, TEXTS, 400, lora="stars")["error"]["message"]
    )


def test_an_adapter_that_does_not_fit_its_model_says_why(client: TestClient) -> None:
    for name, words in {"wide": "shape", "broken": "truncated"}.items():
        error = ask(client, MODEL, QUERY, TEXTS, 502, lora=name)["error"]
        assert error["code"] == "MODEL_LOAD_FAILED" and words in error["message"] and error["permanent"]
    assert scores(client, lora="laws") != scores(client)


def test_the_model_list_shows_adapters(client: TestClient, made: Path) -> None:
    scores(client, lora="stars")
    shown = {a["name"]: a for a in client.get(f"/v1/models/{MODEL}").json()["adapters"]}
    assert sorted(shown) == sorted([*NAMES, "wide", "broken"])
    assert shown["stars"] == {
        "name": "stars",
        "source": str(made / "lora/stars"),
        "loaded": True,
        "progress": None,
    }
    assert shown["wide"]["loaded"] is False


def test_requests_by_adapter_are_counted_under_the_model(client: TestClient) -> None:
    scores(client, f"{MODEL}:laws")
    text = client.get("/metrics").text
    assert f'model="{MODEL}",route="score"' in text and ":laws" not in text


def test_an_id_chosen_by_the_operator_does_not_name_the_base_model(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "lora/laws", tmp_path / "laws")
    processes.edit_json(
        tmp_path / "laws/adapter_config.json", base_model_name_or_path="BAAI/bge-reranker-base"
    )
    shutil.copytree(made / MODEL, tmp_path / "weights/v3")
    entry = {"id": "acme/hubbase", "source": "weights/v3", "license": "none", "description": "", "outputs": ["score"],
             "max_seq_length": 64, "adapters": {"laws": str(tmp_path / "laws")}}  # fmt: skip
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(entry))
    with asking({}, models_dir=str(tmp_path)) as client:
        assert scores(client, "acme/hubbase:laws") != scores(client, "acme/hubbase")


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (catalog()["BAAI/bge-reranker-base"], {"BAAI/bge-reranker-base"}),
        (replace(catalog()["BAAI/bge-reranker-base"], source="/models/mine"), set()),
        (replace(catalog()["BAAI/bge-reranker-base"], source="acme/tuned"), {"acme/tuned"}),
        (ModelConfig("acme/x", "acme/y"), {"acme/y"}),
        (ModelConfig("acme/x", "./acme/y"), set()),
    ],
)
def test_hub_ids_of_base_models(config: ModelConfig, names: set[str]) -> None:
    assert set(base_names(config)) == names


# ── many of them, and versions ──


@asynccontextmanager
async def serving(made: Path, **config: Any) -> AsyncIterator[Service]:
    given = {"models_dir": str(made), "source_roots": (str(made),), "batch_tokens": 8, **config}
    async with inprocess.serving(**given) as service:
        yield service


async def raw(service: Service, model: str = MODEL) -> tuple[float, ...]:
    return await inprocess.scores(service, model, QUERY, TEXTS)


def metric(service: Service, name: str) -> float:
    return service.metrics.registry.get_sample_value(name, {"model": MODEL}) or 0.0


async def test_the_least_recently_used_adapter_is_evicted(made: Path) -> None:
    async with serving(made, adapter=flags(made, *NAMES), max_adapters=2) as service:
        first = {name: await raw(service, f"{MODEL}:{name}") for name in NAMES}
        for _ in range(3):
            for name in NAMES:
                assert await raw(service, f"{MODEL}:{name}") == first[name]
        loaded = [a.name for a in service.registry.info(MODEL).adapters if a.loaded]
        assert sorted(loaded) == sorted(NAMES[1:])
        assert metric(service, "sie_adapter_evictions_total") >= 9
        plain = (await service.admin.unload(MODEL)).memory_bytes
        assert plain == 0


async def test_memory_of_adapters_is_counted(made: Path) -> None:
    async with serving(made, adapter=flags(made, "laws")) as service:
        await raw(service)
        before = service.registry.info(MODEL).memory_bytes
        await raw(service, f"{MODEL}:laws")
        file = (made / "lora/laws/adapter_model.safetensors").stat().st_size
        grown = service.registry.info(MODEL).memory_bytes - before
        assert 0.5 * file < grown < 4 * file  # B of fused modules is padded with zeros
        service.operations.unload_adapter(MODEL, "laws")
        assert service.registry.info(MODEL).memory_bytes == before


async def test_many_requests_load_an_adapter_once(made: Path) -> None:
    async with serving(made, adapter=flags(made, "laws")) as service:
        answers = await asyncio.gather(*(raw(service, f"{MODEL}:laws") for _ in range(40)))
        assert len(set(answers)) == 1 and metric(service, "sie_adapter_loads_total") == 1


async def test_traffic_while_five_adapters_come_and_go(made: Path) -> None:
    """16 clients mix base and adapters: requests for the base never fail, and answers come from the named adapter."""
    async with serving(made) as service:
        wanted = {"": await raw(service)}
        for name in NAMES:
            await service.admin.load_adapter(MODEL, name, str(made / "lora" / name))
            wanted[name] = await raw(service, f"{MODEL}:{name}")
        over, answered, gone = False, 0, 0

        async def client(i: int) -> None:
            nonlocal answered, gone
            while not over:
                name = ["", *NAMES][i % 4]
                try:
                    assert await raw(service, f"{MODEL}:{name}" if name else MODEL) == wanted[name]
                    answered += 1
                except AdapterNotFound:
                    assert name
                    gone += 1
                    await asyncio.sleep(0)

        clients = [asyncio.create_task(client(i)) for i in range(16)]
        for turn in itertools.count():
            if turn >= 12 and answered > 150 and gone:
                break
            assert turn < 300, (answered, gone)
            names = [f"extra-{turn}-{i}" for i in range(5)]
            for i, name in enumerate(names):
                await service.admin.load_adapter(MODEL, name, str(made / "lora" / NAMES[i % 3]))
            await service.admin.unload_adapter(MODEL, NAMES[turn % 3])
            for name in names:
                await service.admin.unload_adapter(MODEL, name)
            await service.admin.load_adapter(MODEL, NAMES[turn % 3], str(made / "lora" / NAMES[turn % 3]))
        over = True
        await asyncio.gather(*clients)


async def test_a_swap_keeps_adapters_and_mixes_no_versions(made: Path) -> None:
    async with serving(made, adapter=flags(made, "laws")) as service:
        old = await raw(service, f"{MODEL}:laws")
        asking = [asyncio.create_task(raw(service, f"{MODEL}:laws")) for _ in range(30)]
        answer = await service.admin.swap(MODEL, str(made / "toy/other"))
        assert [(a.name, a.loaded) for a in answer.adapters] == [("laws", True)]
        new = await raw(service, f"{MODEL}:laws")
        assert new != old and new != await raw(service)
        assert set(await asyncio.gather(*asking)) <= {old, new}


async def test_a_swap_follows_a_changed_adapter_of_a_catalog_entry(made: Path, tmp_path: Path) -> None:
    def write(weights: str, adapters: dict[str, str]) -> None:
        entry = {"id": "m", "source": str(made / weights), "license": "mit", "description": "",
                 "outputs": ["score"], "max_seq_length": 64, "adapters": adapters}  # fmt: skip
        (tmp_path / "m.yaml").write_text(yaml.safe_dump(entry))

    lora = made / "lora"
    write(MODEL, {"law": str(lora / "laws"), "old": str(lora / "cooking")})
    async with serving(made, models_dir=str(tmp_path), models_dir_poll_s=0.05) as service:
        for name in ("law", "old"):
            await raw(service, f"m:{name}")
        write("toy/other", {"law": str(lora / "stars")})
        await until(lambda: service.registry.info("m").source == str(made / "toy/other"))
        found = await raw(service, "m:law")
        with_one = service.registry.info("m").memory_bytes
        await service.admin.unload("m")
        assert found == await raw(service, "m:law")
        assert service.registry.info("m").memory_bytes == with_one
        with pytest.raises(AdapterNotFound):
            await raw(service, "m:old")


async def test_removing_an_adapter_from_an_entry_frees_it(made: Path, tmp_path: Path) -> None:
    def write(**adapters: str) -> None:
        entry = {"id": "m", "source": str(made / MODEL), "license": "mit", "description": str(adapters),
                 "outputs": ["score"], "max_seq_length": 64, "adapters": adapters}  # fmt: skip
        (tmp_path / "m.yaml").write_text(yaml.safe_dump(entry))

    async def written(**adapters: str) -> None:
        write(**adapters)
        await until(lambda: service.registry.info("m").description == str(adapters))

    lora = made / "lora"
    write(x=str(lora / "laws"))
    async with serving(made, models_dir=str(tmp_path), models_dir_poll_s=0.05) as service:
        await raw(service, "m")
        without = service.registry.info("m").memory_bytes
        laws = await raw(service, "m:x")
        await written(x=str(lora / "stars"))
        assert [a.loaded for a in service.registry.info("m").adapters] == [False]
        assert service.registry.info("m").memory_bytes == without
        assert await raw(service, "m:x") != laws
        await written()
        assert service.registry.info("m").memory_bytes == without
    assert service.metrics.registry.get_sample_value("sie_model_swaps_total", {"model": "m"}) is None


async def test_an_operators_load_reads_replaced_files(made: Path, tmp_path: Path) -> None:
    source = tmp_path / "x"
    shutil.copytree(made / "lora/laws", source)
    roots = (str(tmp_path), str(made))
    async with serving(made, adapter=(f"{MODEL}:x={source}",), source_roots=roots) as service:
        laws = await raw(service, f"{MODEL}:x")
        held = service.registry.slot(MODEL).serving.attached["x"]  # type: ignore[union-attr]
        await service.admin.load_adapter(MODEL, "x", str(source))
        assert service.registry.slot(MODEL).serving.attached["x"] is held  # type: ignore[union-attr]
        shutil.copy(made / "lora/stars/adapter_model.safetensors", source)
        assert await raw(service, f"{MODEL}:x") == laws
        await service.admin.load_adapter(MODEL, "x", str(source))
        assert (
            await raw(service, f"{MODEL}:x") == await raw(service, await loaded_stars(service, made)) != laws
        )


async def loaded_stars(service: Service, made: Path) -> str:
    await service.admin.load_adapter(MODEL, "stars-again", str(made / "lora/stars"))
    return f"{MODEL}:stars-again"


async def test_adapters_load_and_unload_during_a_swap(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attach = Loader.attach

    async def slow(self: Loader, *args: Any) -> Adapter:
        await asyncio.sleep(0.3)
        return await attach(self, *args)

    async with serving(made, adapter=flags(made, "laws", "stars")) as service:
        for name in ("stars", "laws"):
            await raw(service, f"{MODEL}:{name}")
        monkeypatch.setattr(Loader, "attach", slow)
        swap = asyncio.create_task(service.admin.swap(MODEL, str(made / "toy/other")))
        slot = service.registry.slot(MODEL)
        await until(lambda: len(slot.versions) == 2 and slot.versions[1].attached)
        late = asyncio.create_task(service.admin.load_adapter(MODEL, "cooking", str(made / "lora/cooking")))
        await asyncio.sleep(0.05)
        await service.admin.unload_adapter(MODEL, "stars")
        await late
        answer = await swap
        assert {a.name: a.loaded for a in answer.adapters} == {"laws": True, "stars": False, "cooking": True}


async def test_documents_are_cached_by_adapter_and_freed_with_it(made: Path, tmp_path: Path) -> None:
    model = make_pylate(tmp_path / "colbert", "bert")
    base = AutoModel.from_pretrained(model)
    make_adapter(base, tmp_path / "lora", r=4, target_modules=["query", "value"])
    named = {"model": (f"colbert={model}",), "source_roots": (str(tmp_path),)}
    async with inprocess.serving(**named, batch_tokens=32) as service:
        documents = service.documents
        assert documents
        await raw(service, "colbert")
        own = documents.nbytes
        await service.admin.load_adapter("colbert", "x", str(tmp_path / "lora"))
        assert documents.nbytes == own > 0  # the texts of its trial run are not cached
        await raw(service, "colbert:x")
        assert documents.nbytes == 2 * own
        await service.admin.unload_adapter("colbert", "x")
        assert documents.nbytes == own
        await service.admin.unload("colbert")
        assert documents.nbytes == 0


async def test_one_wait_for_a_model_and_its_adapter(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attach, load = Loader.attach, Loader.load

    async def slow_load(self: Loader, *args: Any) -> Any:
        await asyncio.sleep(0.6)
        return await load(self, *args)

    async def slow_attach(self: Loader, *args: Any) -> Adapter:
        await asyncio.sleep(0.9)
        return await attach(self, *args)

    monkeypatch.setattr(Loader, "load", slow_load)
    monkeypatch.setattr(Loader, "attach", slow_attach)
    async with serving(made, adapter=flags(made, "laws"), load_wait_s=1.0) as service:
        with pytest.raises(ModelLoading):  # the adapter alone would load in time
            await raw(service, f"{MODEL}:laws")


async def test_a_model_is_freed_with_its_adapters_and_at_once(made: Path) -> None:
    async with serving(made, adapter=flags(made, "laws")) as service:
        await raw(service, f"{MODEL}:laws")
        await service.worker.call(lambda: None)  # the device thread has released the request
        slot = service.registry.slot(MODEL)
        assert slot.serving is not None
        version, [held] = slot.serving, slot.serving.attached.values()
        assert held.adapter is not None
        layer = weakref.ref(next(iter(held.adapter.changes)))  # a layer of the base model
        del held
        await service.admin.unload(MODEL)
        assert layer() is None and version.engine is None


async def test_only_the_operators_load_waits_for_a_slow_adapter(made: Path) -> None:
    async with serving(made, adapter=flags(made, "laws"), load_wait_s=0.2) as service:
        await service.admin.load(MODEL)
        gate = threading.Event()
        for _ in range(READERS):  # all threads that read
            occupy(service._loader._reading, gate)
        loading = asyncio.create_task(service.admin.load_adapter(MODEL, "laws", str(made / "lora/laws")))
        await asyncio.sleep(0.1)
        with pytest.raises(ModelLoading, match="loading"):  # a request waits at most load_wait_s
            await raw(service, f"{MODEL}:laws")
        assert not loading.done()
        gate.set()
        assert [(a.name, a.loaded) for a in (await loading).adapters] == [("laws", True)]


@contextmanager
def no_download_ends(service: Service) -> Iterator[None]:
    gate = threading.Event()
    for _ in range(READERS):  # all threads that read
        occupy(service._loader._reading, gate)
    try:
        yield
    finally:
        gate.set()


async def test_loading_an_adapter_waits_for_its_cold_model(made: Path) -> None:
    """The call returns once model and adapter are loaded, even if this exceeds the limit for requests."""
    async with serving(made, load_wait_s=0.1) as service:
        with no_download_ends(service):
            loading = asyncio.create_task(service.admin.load_adapter(MODEL, "laws", str(made / "lora/laws")))
            await asyncio.sleep(0.3)
            assert not loading.done()
        answer = await loading
        assert answer.state == "loaded" and [(a.name, a.loaded) for a in answer.adapters] == [("laws", True)]


async def test_a_model_can_be_unloaded_while_an_adapter_is_downloaded(made: Path) -> None:
    async with serving(made) as service:
        base = await raw(service)
        with no_download_ends(service):
            loading = asyncio.create_task(service.admin.load_adapter(MODEL, "laws", str(made / "lora/laws")))
            await asyncio.sleep(0.05)
            assert (await asyncio.wait_for(service.admin.unload(MODEL), 10)).state == "available"
        assert [a.loaded for a in (await loading).adapters] == [True]
        assert await raw(service) == base


@asynccontextmanager
async def adding(service: Service, name: str, source: Path) -> AsyncIterator[asyncio.Task[None]]:
    """Start an operator's load of an adapter, which cannot end before the block does."""
    registry = service.registry
    slot = registry.slot(MODEL)
    assert slot.serving
    with no_download_ends(service):
        task = asyncio.create_task(registry.adapters.add(slot, slot.serving, name, str(source), ""))
        await asyncio.sleep(0.02)
        yield task


async def test_a_failed_load_does_not_affect_a_newer_adapter_of_its_name(made: Path) -> None:
    """The first load fails after the name was unloaded and loaded again from a valid source."""
    async with serving(made) as service:
        base, before = await raw(service), service.registry.info(MODEL).memory_bytes
        async with adding(service, "x", made / "lora/wide") as failing:
            await service.admin.unload_adapter(MODEL, "x")
            good = asyncio.create_task(service.admin.load_adapter(MODEL, "x", str(made / "lora/laws")))
            await asyncio.sleep(0.02)
        assert [a.loaded for a in (await good).adapters] == [True]
        with pytest.raises(ModelLoadFailed, match="shape"):
            await failing
        assert await raw(service, f"{MODEL}:x") != base
        await service.admin.unload_adapter(MODEL, "x")
        assert service.registry.info(MODEL).memory_bytes == before


async def test_an_adapter_unloaded_while_loading_is_not_reported_as_loaded(made: Path) -> None:
    async with serving(made) as service:
        await raw(service)
        before = service.registry.info(MODEL).memory_bytes
        async with adding(service, "x", made / "lora/laws") as loading:
            await service.admin.unload_adapter(MODEL, "x")
        with pytest.raises(Conflict, match="unloaded or replaced while it was loading"):
            await loading
        assert service.registry.info(MODEL).memory_bytes == before
        with pytest.raises(AdapterNotFound):
            await raw(service, f"{MODEL}:x")


async def test_an_adapter_without_finite_scores_is_refused_on_load(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "lora/laws", tmp_path / "laws")
    # B is finite, but its product with this scale is not
    processes.edit_json(tmp_path / "laws/adapter_config.json", lora_alpha=1e38)
    async with serving(made, adapter=(f"{MODEL}:laws={tmp_path / 'laws'}",)) as service:
        with pytest.raises(ModelLoadFailed, match="not finite numbers; check its lora_alpha"):
            await raw(service, f"{MODEL}:laws")
        assert len(await raw(service)) == len(TEXTS)


async def test_a_costly_expression_does_not_block_other_requests(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "LIMIT_S", 1.0)
    shutil.copytree(made / "lora/laws", tmp_path / "laws")
    processes.edit_json(tmp_path / "laws/adapter_config.json", target_modules="(?:(.)|(.)(.)|(.)(.)(.))*[!?]")
    async with serving(made, adapter=(f"{MODEL}:laws={tmp_path / 'laws'}",)) as service:
        expected = await raw(service)
        loading, answered = asyncio.create_task(raw(service, f"{MODEL}:laws")), 0
        while not loading.done():
            assert await raw(service) == expected
            answered += 1
        with pytest.raises(ModelLoadFailed, match="in target_modules takes more than 1 s to match"):
            await loading
        assert answered > 10


async def test_an_operators_load_retries_a_failed_adapter(made: Path, tmp_path: Path) -> None:
    source = tmp_path / "laws"
    shutil.copytree(made / "lora/broken", source)
    async with serving(made, adapter=(f"{MODEL}:laws={source}",), source_roots=(str(tmp_path),)) as service:
        for _ in range(2):
            with pytest.raises(ModelLoadFailed, match="truncated"):
                await raw(service, f"{MODEL}:laws")
        shutil.copytree(made / "lora/laws", source, dirs_exist_ok=True)
        # the failure is cached for requests for a while
        with pytest.raises(ModelLoadFailed, match="truncated"):
            await raw(service, f"{MODEL}:laws")
        assert [
            a.loaded for a in (await service.admin.load_adapter(MODEL, "laws", str(source))).adapters
        ] == [True]
        await raw(service, f"{MODEL}:laws")


async def test_one_directory_written_in_two_ways(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    async with serving(made, model=(f"near={MODEL}",), adapter=("near:laws=lora/laws",)) as service:
        answer = await service.admin.load_adapter("near", "laws", str(made / "lora/laws"))
        assert [a.loaded for a in answer.adapters] == [True]
        assert (await service.admin.load("near", str(made / MODEL))).state == "loaded"
        for _ in range(2):  # unloading keeps the configured source, so it does not resolve the conflict
            with pytest.raises(Conflict, match="another name, or change the configuration"):
                await service.admin.load_adapter("near", "laws", str(made / "lora/stars"))
            await service.admin.unload_adapter("near", "laws")


async def test_a_name_that_never_loaded_is_unknown(made: Path) -> None:
    async with serving(made) as service:
        with pytest.raises(ModelLoadFailed, match="shape"):
            await service.admin.load_adapter(MODEL, "wide", str(made / "lora/wide"))
        with pytest.raises(AdapterNotFound):
            await raw(service, f"{MODEL}:wide")
        await service.admin.load_adapter(MODEL, "laws", str(made / "lora/laws"))
        with pytest.raises(SIEError, match="unload it first"):
            await service.admin.load_adapter(MODEL, "laws", str(made / "lora/stars"))
        await service.admin.unload_adapter(MODEL, "laws")
        with pytest.raises(AdapterNotFound):
            await raw(service, f"{MODEL}:laws")


async def test_a_catalog_entry_and_a_profile_may_name_an_adapter(made: Path, tmp_path: Path) -> None:
    entry = {
        "id": "own/ranker",
        "source": str(made / MODEL),
        "license": "none",
        "description": "toy",
        "outputs": ["score"],
        "max_seq_length": 128,
        "adapters": {"laws": str(made / "lora/laws")},
        "profiles": {"legal": {"lora": "laws"}},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(entry))
    with asking({}, models_dir=str(tmp_path)) as client:
        found = scores(client, "own/ranker", profile="legal")
        assert found == scores(client, "own/ranker", lora="laws") != scores(client, "own/ranker")


# ── over HTTP, as an operator ──


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, made: Path) -> Iterator[Server]:
    args = ["--models-dir", str(made), "--dtype", "float32", "--batch-tokens", "2048"]
    with processes.running(tmp_path_factory.mktemp("server"), *args) as server:
        yield server


def admin(server: Server, action: str, status: int = 200, **body: Any) -> Any:
    answer = server.post(f"/v1/admin/adapters/{action}", body)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_an_operator_loads_and_unloads(server: Server, made: Path) -> None:
    base = server.scores(MODEL, QUERY, TEXTS)
    answer = admin(server, "load", model=MODEL, adapter="a-1", source=str(made / "lora/laws"))
    assert answer["adapters"] == [
        {"name": "a-1", "source": str(made / "lora/laws"), "loaded": True, "progress": None}
    ]
    assert server.scores(f"{MODEL}:a-1", QUERY, TEXTS) != base == server.scores(MODEL, QUERY, TEXTS)
    assert admin(server, "unload", model=MODEL, adapter="a-1")["adapters"] == []
    assert admin(server, "unload", 404, model=MODEL, adapter="a-1")["code"] == "ADAPTER_NOT_FOUND"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"model": MODEL, "adapter": "../up", "source": "a/b"}, "$.adapter"),
        ({"model": MODEL, "adapter": "", "source": "a/b"}, "$.adapter"),
        ({"model": MODEL, "adapter": "a\n", "source": "a/b"}, "$.adapter"),
        ({"model": MODEL, "adapter": "a", "source": "/etc"}, "$.source"),
        ({"model": MODEL, "adapter": "a", "source": "../x"}, "$.source"),
        ({"model": MODEL, "adapter": "a"}, "source"),
        ({"model": MODEL, "adapter": "a", "source": "a/b", "pin": True}, "`pin`"),
    ],
)
def test_invalid_requests_of_an_operator(server: Server, body: dict[str, Any], words: str) -> None:
    assert words in admin(server, "load", 400, **body)["error"]["message"]


def test_the_shell_does_the_same(server: Server, made: Path) -> None:
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sie_server", "admin", *args, "--url", server.base_url]
        env = {**os.environ, **server.admin_env}
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)

    done = run("load-adapter", MODEL, "b-1", str(made / "lora/stars"), "--json")
    assert done.returncode == 0, done.stderr
    assert [a["name"] for a in json.loads(done.stdout)["adapters"]] == ["b-1"]
    done = run("unload-adapter", MODEL, "b-2")
    assert done.returncode != 0 and len(done.stderr.strip().splitlines()) == 1 and "b-2" in done.stderr
    assert "b-1" not in run("unload-adapter", MODEL, "b-1").stdout


def test_a_wrong_flag_stops_the_start(made: Path, tmp_path: Path) -> None:
    for value in ("nobody:a=x/y", f"{MODEL}=x", f"{MODEL}:a=", f"{MODEL}:../a=x/y", f"{MODEL}:a\n=x/y"):
        command = processes.command_line(tmp_path, "serve", "--models-dir", str(made), "--adapter", value)
        assert command.returncode != 0 and "--adapter" in command.stderr
        assert len(command.stderr.strip().splitlines()) == 1, command.stderr
