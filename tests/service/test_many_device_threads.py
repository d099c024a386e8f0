"""Four device threads under mixed traffic have the results of one, through swaps, adapters and cancellations."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from sie_server.engine import device
from sie_server.engine.engine import Engine
from sie_server.engine.job import Job, ScoreTexts
from sie_server.models.layers.int8.machine import problem
from sie_server.serving.device.worker import DeviceWorker
from sie_server.serving.metrics import Metrics, RequestTiming
from sie_server.serving.service import Service
from support.checkpoints.colbert import make_pylate
from support.checkpoints.cross_encoders import make_cross_encoder, random_text
from support.checkpoints.decoders import make_decoder
from support.checkpoints.library import make_library_classifier
from support.families.adapters import make_adapter
from support.servers.inprocess import scores, serving
from support.waiting import until

BERT, COLBERT, DECODER, LIBRARY = "toy/bert", "toy/colbert", "Qwen/Qwen3-Reranker-0.6B", "toy/deberta"
NAMES = ("sie/mini-en", BERT, f"{BERT}:laws", f"{BERT}:stars", COLBERT, DECODER, LIBRARY)
REQUESTS, SWAPS = 70, 4
NEAR = 2e-4  # of scores whose texts were in other batches


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("threads")
    make_cross_encoder(root / "bert", "bert")
    make_pylate(root / "colbert", "bert")
    make_decoder(root / "decoder", "qwen3")
    make_library_classifier(root / "deberta", "deberta-v2")
    for seed, name in enumerate(("laws", "stars")):
        base = AutoModelForSequenceClassification.from_pretrained(root / "bert")
        make_adapter(base, root / name, seed=seed, r=4, target_modules=["query", "value", "dense"])
    return root


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "usable_cores", lambda: 4)


def config_of(made: Path, device_threads: int) -> dict[str, object]:
    places = {BERT: "bert", COLBERT: "colbert", DECODER: "decoder", LIBRARY: "deberta"}
    return {
        "model": ("sie/mini-en", *(f"{name}={made / folder}" for name, folder in places.items())),
        "adapter": tuple(f"{BERT}:{name}={made / name}" for name in ("laws", "stars")),
        "threads": 4,
        "device_threads": device_threads,
        "batch_tokens": 256,
        "source_roots": (str(made),),
    }


def requests() -> list[tuple[str, str, list[str]]]:
    rng = random.Random(7)
    texts = [random_text(rng, rng.randint(1, 40)) for _ in range(40)]
    return [
        (NAMES[i % len(NAMES)], rng.choice(texts), rng.sample(texts, rng.choice((1, 3, 12, 30))))
        for i in range(REQUESTS)
    ]


async def swaps(service: Service, made: Path) -> None:
    """Load other versions of a model with the same weights, one after the other."""
    for _ in range(SWAPS):
        await service.admin.swap(BERT, str(made / "bert"))
        await asyncio.sleep(0.05)


async def cancelled(service: Service, asked: list[tuple[str, str, list[str]]]) -> None:
    """Hang up while requests wait or run."""
    rng = random.Random(3)
    for name, query, texts in asked:
        task = asyncio.create_task(scores(service, name, query, texts * 3))
        await asyncio.sleep(rng.random() * 0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_mixed_traffic_has_the_results_of_one_thread(made: Path, four_cores: None) -> None:
    asked = requests()
    async with serving(**config_of(made, 1)) as service:
        expected = [await scores(service, *each) for each in asked]
    async with serving(**config_of(made, 4)) as service:
        assert len(service.worker._threads) == 4
        others = [
            asyncio.create_task(swaps(service, made)),
            asyncio.create_task(cancelled(service, asked[::3])),
        ]
        found = await asyncio.gather(*(scores(service, *each) for each in asked))
        again = await asyncio.gather(*(scores(service, *each) for each in asked))  # documents are cached now
        await asyncio.gather(*others)
        for one, other, cached in zip(expected, found, again, strict=True):
            assert other == pytest.approx(one, abs=NEAR) and cached == pytest.approx(one, abs=NEAR)
        await until(lambda: service.queued_seconds() == 0)
        await service.worker.settled()
        await until(lambda: service.worker.health.step_s == 0)
        assert service.unready() is None
        for name in (BERT, COLBERT):  # nothing of a request keeps a version in use
            await service.admin.unload(name)
        assert all(service.registry.slot(name).serving is None for name in (BERT, COLBERT))


async def results(worker: DeviceWorker, engine: Engine, texts: list[str]) -> np.ndarray:
    job: Job = engine.tokenize_score(ScoreTexts("how do stars burn", texts, engine.max_seq_length))
    await worker.run(engine, [job], RequestTiming())
    return np.array(job.results)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", ["bert", "colbert"])
async def test_the_same_batches_have_the_same_bits(made: Path, kind: str, dtype: str) -> None:
    if dtype == "int8" and (reason := problem(torch.device("cpu"))):
        pytest.skip(reason)
    engine, rng, before = (
        Engine(made / kind, device="cpu", dtype=dtype),
        random.Random(5),
        torch.get_num_threads(),
    )
    engine.batch_tokens = 300
    texts = [random_text(rng, rng.randint(1, 60)) for _ in range(60)]
    workers = [DeviceWorker(10**6, 1, Metrics()), DeviceWorker(10**6, 1, Metrics(), device_threads=4)]
    try:
        one = await results(workers[0], engine, texts)
        for _ in range(3):
            assert (await results(workers[1], engine, texts)).tobytes() == one.tobytes()
    finally:
        for worker in workers:
            await asyncio.to_thread(worker.close)
        torch.set_num_threads(before)
