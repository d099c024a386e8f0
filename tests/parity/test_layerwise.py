"""Rerankers with a head after each of many layers: ids and scores equal those of FlagEmbedding.

scripts/layerwise_golden.py recorded them with FlagEmbedding 1.4.2 on committed random checkpoints.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from sie_server.engine.engine import Engine
from sie_server.engine.job import Job, ScoreTexts
from sie_server.errors import ModelLoadFailed
from support.device import DEVICE
from support.servers.inprocess import ask, asking, in_order, post

GOLDEN = Path(__file__).parent / "golden" / "layerwise"
TEMPLATES = {"minicpm": "bge-reranker-layerwise", "gemma2": "bge-reranker-lightweight"}
TOLERANCE = 1e-4


class Case:
    """One checkpoint and FlagEmbedding's scores: per layer, all documents of each query."""

    def __init__(self, name: str, **options: Any) -> None:
        self.directory, self.template = GOLDEN / name, TEMPLATES[name]
        self.golden = json.loads((self.directory / "golden.json").read_text(encoding="utf-8"))
        self.queries, self.documents = self.golden["queries"], self.golden["documents"]
        self.layers = [int(layer) for layer in self.golden["scores"]]
        self.engine = Engine(
            self.directory, device=DEVICE, dtype="float32", template=self.template, **options
        )

    def job(self, query: str, layer: int | None) -> Job:
        job = self.engine.tokenize_score(ScoreTexts(query, self.documents, 400))
        job.cutoff_layer = layer
        return job

    def expected(self, query: int, layer: int) -> list[float]:
        count = len(self.documents)
        return list(self.golden["scores"][str(layer)][query * count : (query + 1) * count])


@pytest.fixture(scope="module", params=sorted(TEMPLATES))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def run(engine: Engine, *jobs: Job) -> None:
    works = [work for job in jobs for work in job.work]
    for work, result in zip(works, engine.run(works), strict=True):
        work.job.put(work.index, result)


def test_token_ids_equal_the_reference(case: Case) -> None:
    engine = Engine(
        case.directory, device=DEVICE, dtype="float32", template=case.template, share_prefix=False
    )
    for number, query in enumerate(case.queries):
        job = engine.tokenize_score(ScoreTexts(query, case.documents, 400))
        ids = [work.tokens.ids.tolist() for work in sorted(job.work, key=lambda work: work.index)]
        assert ids == case.golden["ids"][number * len(ids) : (number + 1) * len(ids)]


def test_scores_equal_the_reference_at_every_layer(case: Case) -> None:
    worst = 0.0
    for number, query in enumerate(case.queries):
        for layer in case.layers:
            job = case.job(query, layer)
            run(case.engine, job)
            expected = np.array(case.expected(number, layer))
            worst = max(worst, np.abs(job.results - expected).max())
            np.testing.assert_allclose(job.results, expected, atol=TOLERANCE, rtol=0)
    print(case.template, "max |Δ|", worst)
    every = np.array([case.golden["scores"][str(layer)] for layer in case.layers])
    assert every.std(0).max() > 0.05 and every.std(1).min() > 0.01  # layers differ, texts differ


def test_alone_equals_batched_equals_permuted_equals_mixed(case: Case) -> None:
    """One batch interleaves requests that stop after different layers."""
    jobs = {layer: case.job(case.queries[2], layer) for layer in case.layers}
    works = [work for row in zip(*(job.work for job in jobs.values()), strict=True) for work in row]
    for start in range(0, len(works), 7):
        part = works[start : start + 7]
        for work, result in zip(part, case.engine.run(part), strict=True):
            work.job.put(work.index, result)
    assert any(job.prefix for job in jobs.values())
    for layer, job in jobs.items():
        np.testing.assert_allclose(job.results, case.expected(2, layer), atol=TOLERANCE, rtol=0)
    alone = case.job(case.queries[2], case.layers[0])
    for work in reversed(alone.work):
        run_one = case.engine.run([work])
        np.testing.assert_allclose(run_one, case.expected(2, case.layers[0])[work.index], atol=TOLERANCE)


def test_the_last_layer_is_the_default(case: Case) -> None:
    job = case.job(case.queries[1], None)
    run(case.engine, job)
    np.testing.assert_allclose(job.results, case.expected(1, case.layers[-1]), atol=TOLERANCE, rtol=0)


def test_layers_above_the_cutoff_are_not_computed(case: Case) -> None:
    engine = Engine(case.directory, device=DEVICE, dtype="float32", template=case.template)
    layer = case.layers[1]
    engine._forward.backbone.layers[layer:] = [None] * (len(engine._forward.backbone.layers) - layer)  # type: ignore[attr-defined]
    job = engine.tokenize_score(ScoreTexts(case.queries[2], case.documents, 400))
    job.cutoff_layer = layer
    run(engine, job)
    # with varlen attention, all works are in the pass that computes the prefix, so it is not kept
    kept = 0 if engine._forward.attention.kind == "varlen" else layer
    assert job.prefix is not None and len(job.prefix.layers) == kept
    np.testing.assert_allclose(job.results, case.expected(2, layer), atol=TOLERANCE, rtol=0)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    models = {}
    for name, template in TEMPLATES.items():
        models[name] = tmp_path_factory.mktemp("served") / name
        shutil.copytree(GOLDEN / name, models[name])
        (models[name] / "sie_reranker.yaml").write_text(f"template: {template}")
    with asking(models | {"BAAI/bge-reranker-v2-minicpm-layerwise": GOLDEN / "minicpm"}) as client:
        yield client


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_request_chooses_its_layer(client: TestClient, name: str) -> None:
    case = Case(name)
    for layer in (case.layers[1], case.layers[-1]):
        options = {"cutoff_layer": layer, "compress_ratio": 1, "max_seq_length": 400}
        answer = ask(client, name, case.queries[2], case.documents, **options)
        np.testing.assert_allclose(in_order(answer), case.expected(2, layer), atol=TOLERANCE)
        assert answer["score_type"] == "logit" and "warnings" not in answer
    long = ask(client, name, "rain", [case.documents[-1] * 4], long_document="chunk", max_seq_length=200)
    assert in_order(long, "chunk")[0]["count"] > 1


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_other_vendors_clients_get_probabilities_or_logits(client: TestClient, name: str) -> None:
    texts = ["rain falls", "stars burn hydrogen into helium", "lawyers"]
    logits = np.array(in_order(ask(client, name, "rain", texts, normalize="none", max_document_tokens=2)))
    body = {"model": name, "query": "rain", "documents": texts}

    def found(path: str, more: Any) -> list[float]:
        hits = post(client, path, body | more)["results"]
        return [hit["relevance_score"] for hit in sorted(hits, key=lambda hit: int(hit["index"]))]

    expected = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(found("/v2/rerank", {"max_tokens_per_doc": 2}), expected, atol=1e-6)
    whole = in_order(ask(client, name, "rain", texts, normalize="none"))
    np.testing.assert_allclose(found("/vllm/rerank", {"use_activation": False}), whole, atol=1e-5)
    assert np.abs(logits - whole).max() > 1e-3  # truncation to two tokens changes scores


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("minicpm", {"cutoff_layer": 1}, "it has heads after 2, 3, 4, 5, 6 - at `$.options.cutoff_layer`"),
        ("gemma2", {"cutoff_layer": 3}, "it has heads after 2, 4, 6 - at `$.options.cutoff_layer`"),
        ("gemma2", {"cutoff_layer": "all"}, "$.options.cutoff_layer"),
        ("gemma2", {"cutoff_layer": 2, "compress_ratio": 2}, "$.options.compress_ratio"),
        (
            "sie/mini-en",
            {"cutoff_layer": 2},
            "one head; omit cutoff_layer - at `$.options.cutoff_layer`",
        ),
        # the catalog's default layer for this id is missing from the checkpoint
        ("BAAI/bge-reranker-v2-minicpm-layerwise", {}, "no head after layer 28"),
    ],
)
def test_wrong_layers_are_named(client: TestClient, name: str, options: dict[str, Any], message: str) -> None:
    body = {"query": {"text": "rain"}, "items": [{"text": "rain falls"}], "options": options}
    for route in ("score", "inspect"):
        assert message in post(client, f"/v1/{route}/{name}", body, 400)["detail"]["message"]


@pytest.mark.parametrize(
    ("name", "fields", "template", "message"),
    [
        ("minicpm", {"head_type": "raw"}, None, "{'head_type': 'raw'} is not supported"),
        ("minicpm", {"head_multi": False}, None, "{'head_multi': False} is not supported"),
        ("minicpm", {"start_layer": 1}, None, "lm_head.5.linear_head.weight"),
        ("minicpm", {"start_layer": 3}, None, "lm_head.4.linear_head.weight"),
        ("gemma2", {"layer_wise": False}, None, "layer_wise is not true"),
        ("gemma2", {}, "bge-reranker-gemma", "has its own head"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(
    tmp_path: Path, name: str, fields: dict[str, Any], template: str | None, message: str
) -> None:
    directory = tmp_path / name
    shutil.copytree(GOLDEN / name, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(ModelLoadFailed, match=message.replace("{", "\\{").replace("}", "\\}")):
        Engine(directory, device=DEVICE, template=template or TEMPLATES[name])
