"""The document cache: found by content, bounded in bytes, the least recently used go first, safe between threads."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import UNSET

from sie_server.catalog import EMBEDDED
from sie_server.engine.document_cache import ENTRY_BYTES, CachedDocument, DocumentCache, ModelDocuments
from sie_server.engine.engine import Engine
from sie_server.engine.job import QUERY, Chunking, Job, ScoreTexts
from sie_server.models.heads.late_interaction import DocumentVectors
from sie_server.serving.metrics import RequestTiming
from sie_server.wire import Item, ScoreRequest
from support.checkpoints.colbert import make_pylate
from support.checkpoints.cross_encoders import random_text
from support.device import DEVICE
from support.servers import inprocess

SIZE = 4 * 4 * 10 + ENTRY_BYTES  # bytes of `entry()`


def entry(value: float = 0.0) -> CachedDocument:
    return CachedDocument(DocumentVectors(torch.full((10, 4), float(value))), False, 12)


def test_the_least_recently_used_goes_first() -> None:
    cache = DocumentCache(3 * SIZE)
    for name in (b"a", b"b", b"c"):
        cache.put(name, entry())
    assert cache.get(b"a") is not None
    cache.put(b"d", entry())
    assert [cache.get(name) is not None for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert (cache.nbytes, cache.evictions, cache.hits, cache.misses) == (3 * SIZE, 1, 4, 1)


def test_replacing_counts_once_and_too_large_is_not_kept() -> None:
    cache = DocumentCache(2 * SIZE)
    cache.put(b"a", entry(1))
    cache.put(b"a", entry(2))
    assert cache.nbytes == SIZE
    cache.put(b"b", CachedDocument(DocumentVectors(torch.zeros(10_000, 4)), False, 10_000))
    assert cache.get(b"b") is None
    found = cache.get(b"a")
    assert found is not None
    assert found.vectors.tokens[0, 0] == 2


def test_keys_tell_model_load_limit_and_text_apart() -> None:
    cache = DocumentCache(10 * SIZE)
    first, again = ModelDocuments(cache, "m", "1"), ModelDocuments(cache, "m", "1")
    keys = {first.key("rain", 32), first.key("rain", 33), first.key("Rain", 32), again.key("rain", 32)}
    assert len(keys) == 4
    assert first.key("rain", 32) in keys
    first.put(first.key("rain", 32), entry())
    again.put(again.key("rain", 32), entry())
    first.forget()
    assert first.get(first.key("rain", 32)) is None
    assert again.get(again.key("rain", 32)) is not None
    assert cache.nbytes == SIZE


def test_many_threads_leave_the_books_in_order() -> None:
    cache = DocumentCache(20 * SIZE)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(2000):
            key = bytes([rng.randrange(60)])
            if cache.get(key) is None:
                cache.put(key, entry())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert cache.nbytes == 20 * SIZE == sum(e.nbytes for e in cache._entries.values())
    assert cache.hits + cache.misses == 16_000


def run(engine: Engine, job: Job) -> list[float]:
    if job.work:
        for work, result in zip(job.work, engine.run(job.work), strict=True):
            if work.index != QUERY:
                job.put(work.index, result)
    if job.known:
        engine.score_known(job)
    return job.results


@pytest.fixture(scope="module", params=["embedded", "colbert"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "embedded":
        return EMBEDDED / "mini-en"
    return make_pylate(tmp_path_factory.mktemp("cache") / "colbert", "bert")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cached_scores_equal_uncached_and_hits_do_no_work(directory: Path, dtype: str) -> None:
    cache = DocumentCache(2**26)
    plain = Engine(directory, device=DEVICE, dtype=dtype)
    caching = Engine(directory, device=DEVICE, dtype=dtype, documents=ModelDocuments(cache, "m", None))
    rng = random.Random(8)
    documents = [random_text(rng, n) for n in (0, 1, 4, 9, 30, 120)] + ["- - .", "?!"]
    more = [random_text(rng, 12), random_text(rng, 3)]
    for step, (query, batch) in enumerate(
        [("rain", documents), ("stars burn", documents + more), ("", more)]
    ):
        expected = run(plain, plain.tokenize_score(ScoreTexts(query, batch, 48)))
        job = caching.tokenize_score(ScoreTexts(query, batch, 48))
        assert len(job.work) == 1 + (len(documents), len(more), 0)[step]
        assert job.truncated == plain.tokenize_score(ScoreTexts(query, batch, 48)).truncated
        # in bf16 the forward pass itself moves with the batch; vectors from the cache are those of the first
        tolerance = 1e-6 if dtype == "float32" else 2e-2
        np.testing.assert_allclose(run(caching, job), expected, atol=tolerance, rtol=0)
    assert cache.misses == len(documents) + len(more)
    # the same vectors twice: now the score must not move at all, whatever the number format
    twice = [run(caching, caching.tokenize_score(ScoreTexts("rain", documents, 48))) for _ in range(2)]
    assert twice[0] == twice[1]


def test_another_limit_is_another_document(directory: Path) -> None:
    caching = Engine(directory, device=DEVICE, documents=ModelDocuments(DocumentCache(2**26), "m", None))
    text = random_text(random.Random(1), 60)
    run(caching, caching.tokenize_score(ScoreTexts("rain", [text], 48)))
    assert caching.tokenize_score(ScoreTexts("rain", [text], 48)).known
    assert caching.tokenize_score(ScoreTexts("rain", [text], 32)).known == []


def test_a_cached_window_says_nothing_of_its_document(directory: Path) -> None:
    """Whether a document was cut depends on the request, and is not kept with its windows."""
    engine = Engine(directory, device=DEVICE, documents=ModelDocuments(DocumentCache(2**26), "m", None))
    text = random_text(random.Random(1), 90)
    for most, known in ((2, 0), (100, 2), (2, 2)):
        job = engine.tokenize_score(ScoreTexts("rain", [text], 32, chunking=Chunking(0, most)))
        assert len(job.known) == known
        assert job.truncated == [most == 2] * len(job.truncated)
        assert all(isinstance(score, float) for score in run(engine, job))


async def test_a_text_that_the_caller_had_shortened_is_whole_for_others(directory: Path) -> None:
    long = "rain falls over the harbour and nobody reads contracts"
    async with inprocess.serving(model=(f"m={directory}",), document_cache_mb=16) as service:

        async def ask(text: str, **options: Any) -> Any:
            request = ScoreRequest(Item(text="when does rain fall"), [Item(text=text)], options=options)
            return (await service.score("m", request, RequestTiming())).scores[0].truncated

        await service.admin.load("m")
        async with service.registry.lease("m") as (engine, _):
            [short], [cut] = engine.shorten([long], 5)
        assert cut
        assert await ask(long, max_document_tokens=5) is True
        assert await ask(short) is UNSET
        assert await ask(short, long_document="refuse") is UNSET
        assert await ask(long, max_document_tokens=5) is True
    assert service.documents and service.documents.hits == 3


def test_a_cached_document_does_not_keep_its_batch_alive(directory: Path) -> None:
    cache = DocumentCache(2**26)
    engine = Engine(directory, device=DEVICE, documents=ModelDocuments(cache, "m", None))
    run(
        engine,
        engine.tokenize_score(ScoreTexts("rain", [random_text(random.Random(i), 20) for i in range(9)], 48)),
    )
    for kept in cache._entries.values():
        assert kept.vectors.tokens.untyped_storage().nbytes() == kept.vectors.tokens.nbytes
