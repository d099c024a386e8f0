"""Loads that never end, panics of native libraries, aliases and replaced adapter files, in a running service."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient
from transformers import AutoModelForSequenceClassification

from sie_server.config import Secret
from sie_server.errors import Conflict, ModelLoadFailed, ModelLoading
from sie_server.serving.loading import lanes, loader
from sie_server.serving.operators import operations
from sie_server.serving.service import Service
from support.checkpoints import cross_encoders
from support.checkpoints.decoders import make_decoder
from support.families.adapters import make_adapter
from support.servers.inprocess import ask, asking, post, scores, serving
from support.waiting import until

QUERY, TEXTS = "how do stars burn", ["stars burn hydrogen", "rain falls tomorrow"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    for seed, name in enumerate("abc"):
        cross_encoders.make_cross_encoder(root / name, "bert", seed=seed)
    return root


class Blocked:
    """Lets every call of a function that reads `name` wait for a gate, as a dead network file system would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any, function: str, name: str) -> None:
        self.gate, self.calls, self.ended = threading.Event(), 0, 0
        real = getattr(module, function)

        def blocked(*args: Any, **kwargs: Any) -> Any:
            if not any(str(value).endswith(f"/{name}") for value in args):
                return real(*args, **kwargs)
            self.calls += 1
            self.gate.wait(60)
            try:
                return real(*args, **kwargs)
            finally:
                self.ended += 1

        monkeypatch.setattr(module, function, blocked)


@contextmanager
def blocked(monkeypatch: pytest.MonkeyPatch, module: Any, function: str, name: str) -> Iterator[Blocked]:
    block = Blocked(monkeypatch, module, function, name)
    try:
        yield block
    finally:
        block.gate.set()


@pytest.mark.parametrize(
    ("module", "function"),
    [(loader, "fetch"), (loader.footprint, "needed_bytes"), (loader, "load_engine")],
)
async def test_a_load_that_never_ends(
    made: Path, monkeypatch: pytest.MonkeyPatch, module: Any, function: str
) -> None:
    monkeypatch.setattr(loader, "LEFT_S", 0.1)
    with blocked(monkeypatch, module, function, "a") as block:
        async with serving(models_dir=str(made), load_stall_s=0.4, memory_budget_mb=100) as service:
            with pytest.raises(ModelLoadFailed, match=r"no progress for 0\.4 s") as caught:
                await scores(service, "a", QUERY, TEXTS)
            assert caught.value.details["error_class"] == "LoadStalled"
            info = service.registry.info("a")
            assert info.state == "failed" and "no progress" in (info.last_error or "")
            assert info.memory_bytes == 0 and info.progress is None
            # others load, unload and swap, and the same slot takes other weights
            await scores(service, "b", QUERY, TEXTS)
            await service.admin.unload("b")
            # the same files are refused while the thread is blocked, and no thread is added
            service.registry.slot("a").retry_at = 0
            with pytest.raises(ModelLoadFailed, match="was given up and still blocks its thread"):
                await scores(service, "a", QUERY, TEXTS)
            assert block.calls == 1
            await service.admin.swap("a", str(made / "c"))
            assert service.registry.info("a").source == str(made / "c")
            block.gate.set()
            await until(lambda: block.ended == 1)
            assert service.registry.info("a").source == str(made / "c")  # the late result is thrown away
            assert service.registry.info("a").memory_bytes == service.registry.slot("a").versions[0].nbytes


async def test_a_load_works_after_its_blocked_thread_ends(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with blocked(monkeypatch, loader, "load_engine", "a") as block:
        async with serving(models_dir=str(made), load_stall_s=0.4) as service:
            with pytest.raises(ModelLoadFailed, match="no progress"):
                await scores(service, "a", QUERY, TEXTS)
            block.gate.set()
            service.registry.slot("a").retry_at = 0
            assert len(await scores(service, "a", QUERY, TEXTS)) == 2


async def test_a_stuck_load_keeps_no_other_model_waiting(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long before it is given up, others take its place, and an operator may end it."""
    for module in (lanes, operations):
        monkeypatch.setattr(module, "PATIENCE_S", 0.3)
    with blocked(monkeypatch, loader, "load_engine", "a") as block:
        async with serving(models_dir=str(made), load_wait_s=30) as service:
            await scores(service, "b", QUERY, TEXTS)
            stuck = asyncio.create_task(scores(service, "a", QUERY, TEXTS))
            await until(lambda: block.calls == 1)
            with pytest.raises(Conflict, match="being loaded"):  # it may still make progress
                await service.admin.unload("a")
            await service.admin.unload("b")
            await scores(service, "c", QUERY, TEXTS)
            progress = service.registry.slot("a").progress
            assert progress is not None
            await until(lambda: progress.idle_s() >= 0.3)
            assert (await service.admin.unload("a")).state == "available"
            with pytest.raises(ModelLoading, match="an operator has ended the load"):
                await stuck


async def test_a_stuck_swap_leaves_the_old_version(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with blocked(monkeypatch, loader, "load_engine", "b"):
        async with serving(models_dir=str(made), load_stall_s=0.4) as service:
            before = await scores(service, "a", QUERY, TEXTS)
            with pytest.raises(ModelLoadFailed, match="no progress"):
                await service.admin.swap("a", str(made / "b"))
            assert await scores(service, "a", QUERY, TEXTS) == before
            assert len(service.registry.slot("a").versions) == 1


async def test_the_service_ends_while_a_load_is_stuck(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with blocked(monkeypatch, loader, "fetch", "a") as block:
        async with serving(models_dir=str(made)) as service:
            stuck = asyncio.create_task(scores(service, "a", QUERY, TEXTS))
            await until(lambda: block.calls == 1)
        assert not block.gate.is_set()
        stuck.cancel()
    left = [thread for thread in threading.enumerate() if thread.name.startswith(loader.LOADING_THREADS)]
    assert all(thread.daemon for thread in left)


async def test_a_slow_load_with_progress_is_not_given_up(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, gate = loader.load_engine, threading.Event()

    def slow(model: Any, directory: Any, config: Any, documents: Any, tally: Any) -> Any:
        for _ in range(12):
            gate.wait(0.1)
            tally.nbytes += 1
        tally.nbytes = 0
        return real(model, directory, config, documents, tally)

    monkeypatch.setattr(loader, "load_engine", slow)
    async with serving(models_dir=str(made), load_stall_s=0.6) as service:
        assert len(await scores(service, "a", QUERY, TEXTS)) == 2


# ── adapters ──


@pytest.fixture(scope="module")
def lora(made: Path) -> Path:
    for seed, name in enumerate(("one", "two")):
        base = AutoModelForSequenceClassification.from_pretrained(made / "a")
        make_adapter(base, made / "lora" / name, seed=seed, r=4, target_modules=["query", "value", "dense"])
    return made / "lora"


async def test_an_adapter_that_never_loads(made: Path, lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = (f"a:laws={lora / 'one'}",)
    with blocked(monkeypatch, loader, "stamped", "one") as block:
        async with serving(models_dir=str(made), adapter=adapter, load_stall_s=0.4) as service:
            waiting = asyncio.create_task(scores(service, "a:laws", QUERY, TEXTS))
            await until(lambda: block.calls == 1)
            [info] = service.registry.info("a").adapters
            assert info.progress is not None and info.progress.phase == "fetch" and not info.loaded
            with pytest.raises(ModelLoadFailed, match="adapter 'a:laws' made no progress"):
                await waiting
            [info] = service.registry.info("a").adapters
            assert info.progress is None
            assert len(await scores(service, "a", QUERY, TEXTS)) == 2


async def test_the_download_of_a_new_adapter_is_shown(
    made: Path, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with blocked(monkeypatch, loader, "fetch", "one") as block:
        async with serving(models_dir=str(made)) as service:
            loading = asyncio.create_task(service.admin.load_adapter("a", "laws", str(lora / "one")))
            await until(lambda: block.calls == 1)
            [info] = service.registry.info("a").adapters
            assert (info.name, info.loaded) == ("laws", False)
            assert info.progress is not None and info.progress.phase == "fetch"
            block.gate.set()
            assert [(a.name, a.loaded, a.progress) for a in (await loading).adapters] == [
                ("laws", True, None)
            ]


async def test_replaced_adapter_files_are_followed(made: Path, lora: Path, tmp_path: Path) -> None:
    files = tmp_path / "laws"
    shutil.copytree(lora / "one", files)
    adapter = (f"a:laws={files}", f"a:two={lora / 'two'}")
    async with serving(models_dir=str(made), adapter=adapter, models_dir_poll_s=0.05) as service:
        old = await scores(service, "a:laws", QUERY, TEXTS)
        new = await scores(service, "a:two", QUERY, TEXTS)
        assert old != new
        weights = files / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])  # cut off: requests keep the earlier files

        def failed() -> bool:
            serving_version = service.registry.slot("a").serving
            return bool(serving_version and serving_version.attached["laws"].failed_stamp)

        await asked_until(service, failed)
        assert await scores(service, "a:laws", QUERY, TEXTS) == old
        shutil.copy(lora / "two/adapter_model.safetensors", files)
        shown: list[tuple[float, ...]] = []

        async def look() -> None:
            shown.append(await scores(service, "a:laws", QUERY, TEXTS))

        end = time.monotonic() + 20
        while not shown or shown[-1] != new:
            assert time.monotonic() < end
            await look()
        assert set(shown) == {old, new} or set(shown) == {new}
        slot = service.registry.slot("a")
        assert slot.serving and sorted(slot.serving.attached) == ["laws", "two"]


async def asked_until(service: Service, holds: Any) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        await scores(service, "a:laws", QUERY, TEXTS)


# ── aliases ──


def test_an_alias_and_its_id_are_one_slot(made: Path, tmp_path: Path) -> None:
    entry = {
        "id": "my/model",
        "source": str(made / "a"),
        "aliases": ["short", "old/name"],
        "license": "mit",
        "description": "mine",
        "outputs": ["score"],
        "max_seq_length": 64,
    }
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(entry))
    keys = Secret(f"ops:admin:{'k' * 16}")
    with asking({}, models_dir=str(tmp_path), source_roots=(str(made),), api_keys=keys) as client:
        client.headers["authorization"] = f"Bearer {'k' * 16}"
        answers = {name: ask(client, name, QUERY, TEXTS) for name in ("my/model", "short", "old/name")}
        assert [answer["model"] for answer in answers.values()] == ["my/model", "short", "old/name"]
        assert len({tuple(s["score"] for s in answer["scores"]) for answer in answers.values()}) == 1
        shown = {m["name"]: m for m in client.get("/v1/models").json()["models"]}
        assert "short" not in shown and shown["my/model"]["aliases"] == ["short", "old/name"]
        own = {"model": "short"}
        assert client.get("/v1/models/short").json() == shown["my/model"] | {"name": "short", "id": "short"}
        metrics = client.get("/metrics").text
        assert 'sie_model_loads_total{model="my/model"} 1.0' in metrics and '"short"' not in metrics
        post(client, "/v1/admin/swap", own | {"source": str(made / "b")})
        assert client.get("/v1/models/my/model").json()["source"] == str(made / "b")
        post(client, "/v1/admin/unload", own)
        assert client.get("/v1/models/my/model").json()["state"] == "available"
        assert post(client, "/v1/admin/load", own | {"pin": True})["pinned"]
        assert client.get("/v1/models/my/model").json()["pinned"]
        wrong = client.post("/v1/score/shorter", json={"query": {"text": "a"}, "items": [{"text": "b"}]})
        assert wrong.status_code == 404 and "'short'" in wrong.text


# ── panics, and templates without end ──


def expect_refused(client: TestClient, model: str, words: str) -> None:
    for _ in range(2):  # the second answer comes from the cool-down
        began = time.monotonic()
        answer = ask(client, model, QUERY, TEXTS, 502)
        assert answer["error"]["code"] == "MODEL_LOAD_FAILED" and words in answer["error"]["message"]
    assert time.monotonic() - began < 5
    shown = client.get(f"/v1/models/{model}").json()
    assert shown["state"] == "failed" and shown["memory_bytes"] == 0


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_text_at_which_the_tokenizer_panics(made: Path, tmp_path: Path) -> None:
    directory = tmp_path / "m"
    shutil.copytree(made / "a", directory)
    split = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    edit(directory / "tokenizer.json", pre_tokenizer=split)
    edit(
        directory / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast"
    )  # runs the file as it is
    with asking({"m": directory, "b": made / "b"}) as client:
        answer = ask(client, "m", QUERY, ["a" * 60 + "!"], 500)
        assert answer["error"]["code"] == "INFERENCE_ERROR" and "panicked" in answer["error"]["message"]
        assert (
            len(ask(client, "m", QUERY, TEXTS)["scores"])
            == len(ask(client, "b", QUERY, TEXTS)["scores"])
            == 2
        )


def test_a_tokenizer_that_panics_while_it_loads(made: Path, tmp_path: Path) -> None:
    for name in ("read", "probe"):
        shutil.copytree(made / "a", tmp_path / name)
        edit(tmp_path / name / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    edit(tmp_path / "read/tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})
    # the words that find the special tokens expand into one that the expression cannot match in time
    expand = {"type": "Replace", "pattern": {"Regex": "[ab]"}, "content": "a" * 60 + "!"}
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    edit(tmp_path / "probe/tokenizer.json", normalizer=expand, pre_tokenizer=split)
    with asking({}, models_dir=str(tmp_path)) as client:
        expect_refused(client, "read", "not a valid tokenizer")
        expect_refused(client, "probe", "a native library panicked")
        assert client.get("/livez").status_code == 200


def test_templates_without_end(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sie_server.templates.rendering.CPU_S", 1)
    for name in ("x", "y", "z"):  # more than there are threads that read
        directory = make_decoder(tmp_path / name, "qwen3")
        (directory / "1_LogitScore").mkdir()
        (directory / "1_LogitScore/config.json").write_text('{"true_token_id": 1}')
        kinds = [("Transformer", ""), ("LogitScore", "1_LogitScore")]
        modules = [{"type": f"sentence_transformers.{kind}", "path": path} for kind, path in kinds]
        (directory / "modules.json").write_text(json.dumps(modules))
        loop = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
        (directory / "chat_template.jinja").write_text(f"{name} {loop}")
    shutil.copytree(made / "a", tmp_path / "a")
    with asking({}, models_dir=str(tmp_path)) as client:
        for name in ("x", "y", "z"):
            expect_refused(client, name, "does not render within 1 s of processor time")
        assert len(ask(client, "a", QUERY, TEXTS)["scores"]) == 2
