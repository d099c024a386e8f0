"""`serve --ray` answers as one server does, and survives the death of its parts."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sie_sdk import SIEClient
from sie_sdk.types import Item
from support.checkpoints import cross_encoders
from support.servers import clusters, processes
from support.servers.clusters import ADMIN
from support.servers.processes import Server
from support.waiting import eventually

QUERY = "stars burn hydrogen"
TEXTS = ["a star burns", "rain in spring", "hydrogen and helium", ""]
POOLS = """
ingress_cpus = 0.1
split_documents = 8
[cluster.pools.small]
cpus = 0.1
min_replicas = 2
"""
CALIBRATION = {"slope": 2.0, "intercept": -1.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    cross_encoders.make_cross_encoder(root / "toy/bert", "bert")
    cross_encoders.make_cross_encoder(root / "other/bert", "bert", seed=7)
    processes.make_encoder(root / "toy/encoder")
    stages = [{"model": "toy/bert", "keep": 4}, {"model": "calibrated"}]
    calibrated = {"id": "calibrated", "source": "other/bert", "license": "mit", "description": "",
                  "outputs": ["score"], "max_seq_length": 128, "calibration": CALIBRATION}  # fmt: skip
    for entry in ({"id": "two", "stages": stages}, calibrated):
        (root / f"{entry['id']}.yaml").write_text(json.dumps(entry))  # JSON is YAML
    return root


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("cluster")
    with clusters.running(folder, models, "--dtype=float32", "--model=toy/bert", table=POOLS) as it:
        yield it


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, models: Path) -> dict[str, list[float]]:
    """Return the scores of one server."""
    folder = tmp_path_factory.mktemp("single")
    with processes.single(
        folder, "--dtype=float32", "--models-dir", str(models), "--model=toy/bert"
    ) as server:
        return {name: server.scores(name, QUERY, TEXTS) for name in ("toy/bert", "other/bert")}


def test_scores_are_those_of_one_server(cluster: Server, expected: dict[str, list[float]]) -> None:
    assert cluster.scores("toy/bert", QUERY, TEXTS) == expected["toy/bert"]
    with SIEClient(cluster.base_url) as client:
        result = client.score("other/bert", Item(text=QUERY), [Item(text=text) for text in TEXTS])
        by_id = {entry["item_id"]: entry["score"] for entry in result["scores"]}
        assert [by_id[f"item-{i}"] for i in range(len(TEXTS))] == expected["other/bert"]
        [vector] = client.encode("toy/encoder", [Item(text=QUERY)])
        assert np.isfinite(vector["dense"]).all()
    answer = cluster.post("/v2/rerank", {"model": "toy/bert", "query": QUERY, "documents": TEXTS}).json()
    assert len(answer["results"]) == len(TEXTS)
    assert cluster.post("/tokenize", {"inputs": QUERY}).json()
    names = [one["name"] for one in cluster.get("/v1/models").json()["models"]]
    assert names[0] == "toy/bert" and {"other/bert", "toy/encoder", "sie/mini-en"} <= set(names)


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "code", "words"),
    [
        ("/v1/score/no/model", {}, {}, 404, "MODEL_NOT_FOUND", "no/model"),
        ("/v1/score/toy/bert", {"items": [1]}, {}, 400, "INVALID_INPUT", r"\$\.items\[0\]"),
        ("/v1/score/toy/bert", {}, {"x-sie-pool": "small-1"}, 400, "INVALID_INPUT", "'small'"),
        ("/v1/score/toy/bert", {}, {"x-sie-machine-profile": "L4"}, 400, "INVALID_INPUT", "it has cpu"),
        ("/v1/score/toy/bert:none", {}, {}, 404, "ADAPTER_NOT_FOUND", "none"),
        ("/v1/admin/load", {"model": "toy/bert"}, {}, 401, "UNAUTHORIZED", "API key"),
    ],
)
def test_errors_are_those_of_one_server(
    cluster: Server,
    path: str,
    body: dict[str, Any],
    headers: dict[str, str],
    status: int,
    code: str,
    words: str,
) -> None:
    body = {"query": {"text": QUERY}, "items": [{"text": "a"}]} | body if "score" in path else body
    answer = cluster.post(path, body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert re.search(words, answer.json()["error"]["message"])


def test_a_large_request_is_split_and_answered_as_by_one_server(
    cluster: Server, models: Path, tmp_path: Path
) -> None:
    texts = [
        TEXTS[i % 3] if i % 5 == 0 else f"{TEXTS[i % 3]} number {i} " + "word " * (i % 60) for i in range(64)
    ]
    body = {
        "query": {"text": QUERY},
        "items": [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)],
        "options": {"return_logits": True, "max_seq_length": 48, "top_n": 40},
    }
    with processes.running(
        tmp_path, "--dtype=float32", "--models-dir", str(models), "--model=toy/bert"
    ) as server:
        whole = server.post("/v1/score/toy/bert", body).json()
        body["items"][9] = {"id": "d9", "text": 3}
        refused = server.post("/v1/score/toy/bert", body).json()
    assert cluster.post("/v1/score/toy/bert", body).json()["error"] == refused["error"]
    body["items"][9] = {"id": "d9", "text": texts[9]}
    assert eventually(lambda: all(_tokens_of(cluster, lambda: cluster.post("/v1/score/toy/bert", body))))
    found = cluster.post("/v1/score/toy/bert", body).json()
    ours, theirs = ({e["item_id"]: e for e in answer["scores"]} for answer in (found, whole))
    assert len(ours) == len(theirs) == 40
    ranked = [e["logit"] for e in found["scores"]]
    assert ranked == sorted(ranked, reverse=True)
    np.testing.assert_allclose(ranked, [e["logit"] for e in whole["scores"]], atol=1e-5, rtol=0)
    for name in ours.keys() & theirs.keys():  # nearly equal logits may change places, also at the cut
        assert abs(ours[name]["logit"] - theirs[name]["logit"]) < 1e-5
        assert ours[name].get("truncated") == theirs[name].get("truncated")
    assert all(abs(ours[name]["logit"] - ranked[-1]) < 2e-5 for name in ours.keys() - theirs.keys())
    for field in ("usage", "warnings", "score_type", "top_n"):
        assert found[field] == whole[field]
    by_text: dict[str, set[float]] = {}
    for entry in found["scores"]:
        by_text.setdefault(texts[int(entry["item_id"][1:])], set()).add(entry["score"])
    assert all(len(scores) == 1 for scores in by_text.values())  # equal texts tie


def _tokens_of(cluster: Server, call: Callable[[], object]) -> list[float]:
    """Return the tokens that each model replica reads during a call."""

    def read() -> dict[str, float]:
        page = cluster.get("/metrics").text
        return {
            name: float(value)
            for name, value in re.findall(r'sie_tokens_total\{model="toy/bert",replica="(\w+)"\} (\S+)', page)
        }

    before = read()
    call()
    after = read()
    return [after[name] - before.get(name, 0) for name in after]


def test_cascades_run_whole_on_one_replica_and_calibrations_apply(cluster: Server) -> None:
    texts = [f"{text} {i}" for i, text in enumerate(TEXTS * 3)]  # more than are split
    body = {"query": {"text": QUERY}, "items": [{"text": text} for text in texts]}

    def score(model: str, **options: str) -> Any:
        return cluster.post(f"/v1/score/{model}", {**body, "options": options}).json()

    first, last = score("toy/bert"), score("calibrated", normalize="none")
    raw = {entry["item_id"]: entry["score"] for entry in last["scores"]}
    found = score("two", normalize="calibrated")
    kept = {entry["item_id"] for entry in first["scores"][:4]}
    assert {entry["item_id"] for entry in found["scores"]} == kept and found["score_type"] == "probability"
    assert found["stages"][0]["pruned"] == [entry["item_id"] for entry in first["scores"][4:]]
    for entry in found["scores"]:
        logit = CALIBRATION["slope"] * raw[entry["item_id"]] + CALIBRATION["intercept"]
        assert math.isclose(entry["score"], 1 / (1 + math.exp(-logit)), rel_tol=1e-4)
    info = cluster.get("/v1/models/two").json()
    assert [stage["model"] for stage in info["stages"]] == ["toy/bert", "calibrated"]
    answer = cluster.post("/v2/rerank", {"model": "sie/mini-en", "query": QUERY, "documents": TEXTS}).json()
    assert all(0 < hit["relevance_score"] < 1 for hit in answer["results"])
    swap = {"model": "toy/bert", "source": "org/model", "replay": 3}
    refused = cluster.post("/v1/admin/swap", swap, headers=ADMIN)
    assert refused.status_code == 400 and "$.replay" in refused.json()["error"]["message"]


def test_the_playground_is_served_and_its_requests_are_answered(cluster: Server) -> None:
    """By the ingress, which has no torch."""
    page = cluster.get("/", {"accept": "text/html"})
    assert page.status_code == 200 and "playground/js/app.js" in page.text
    assert "import " in cluster.get("/playground/js/app.js").text
    body = {
        "query": {"text": "stars"},
        "items": [{"text": "rain and stars"}],
        "options": {"token_scores": True},
    }
    shown = cluster.post("/v1/inspect/sie/mini-en", body).json()
    [similar] = shown["items"][0]["token_scores"]["similarities"]
    matched = shown["items"][0]["token_scores"]["positions"][similar.index(max(similar))]
    assert shown["items"][0]["tokens"][matched] == "stars"


def test_metrics_name_the_replicas(cluster: Server) -> None:
    cluster.scores("toy/bert", QUERY, TEXTS)
    page = cluster.get("/metrics").text
    assert len(set(re.findall(r'sie_model_loaded\{model="toy/bert",replica="(\w+)"\} 1', page))) == 2
    assert re.search(r'sie_requests_total\{model="toy/bert",replica="\w+",route="score",status="200"\}', page)


def test_a_replica_that_hangs_hides_no_other(cluster: Server, expected: dict[str, list[float]]) -> None:
    stopped = clusters.replicas(cluster, "small")[0]
    stopped.suspend()
    try:
        assert (
            len(
                set(
                    re.findall(
                        r'sie_model_loaded\{model="toy/bert",replica="(\w+)"', cluster.get("/metrics").text
                    )
                )
            )
            == 1
        )
        assert "toy/bert" in [one["name"] for one in cluster.get("/v1/models").json()["models"]]
    finally:
        stopped.resume()
    assert cluster.scores("toy/bert", QUERY, TEXTS) == expected["toy/bert"]


def test_a_swap_reaches_every_replica(
    cluster: Server, models: Path, expected: dict[str, list[float]]
) -> None:
    body = {"model": "toy/bert", "source": str(models / "other/bert")}
    answer = cluster.post("/v1/admin/swap", body, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    assert [one["state"] for one in answer.json()["replicas"]] == ["loaded"] * 2
    for _ in range(4):
        assert cluster.scores("toy/bert", QUERY, TEXTS) == expected["other/bert"]
    refused = cluster.post("/v1/admin/swap", {**body, "source": str(models / "toy/encoder")}, headers=ADMIN)
    assert refused.status_code == 502, refused.text
    assert cluster.scores("toy/bert", QUERY, TEXTS) == expected["other/bert"]


def test_replicas_that_are_killed_fail_no_request_and_return_with_the_state(
    cluster: Server, expected: dict[str, list[float]]
) -> None:
    """It runs after the swap, so the replicas have to come back with the new weights."""
    stop, failures, done = threading.Event(), [], 0

    def call() -> None:
        nonlocal done
        with SIEClient(cluster.base_url) as client:
            while not stop.is_set():
                try:
                    result = client.score("toy/bert", Item(text=QUERY), [Item(text=text) for text in TEXTS])
                    by_id = {entry["item_id"]: entry["score"] for entry in result["scores"]}
                    if [by_id[f"item-{i}"] for i in range(len(TEXTS))] != expected["other/bert"]:
                        failures.append(result)
                    done += 1
                except Exception as error:
                    failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for kind in ("small", "ingress"):
        before = {one.pid for one in clusters.replicas(cluster, kind)}
        assert len(before) == 2
        clusters.kill(clusters.replicas(cluster, kind)[0])
        assert eventually(lambda: len({p.pid for p in clusters.replicas(cluster, kind)} - before) == 1)  # noqa: B023
        time.sleep(1)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures and done > 20
