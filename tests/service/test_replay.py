"""`sie-server admin swap --replay` at a real server under load, and its decisions in the application."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from starlette.testclient import TestClient
from transformers import AutoModelForSequenceClassification

from sie_sdk import SIEClient
from sie_sdk.types import Item
from sie_server.cli.commands import cli
from support.checkpoints import cross_encoders
from support.checkpoints.decoders import make_decoder
from support.families.adapters import make_adapter
from support.servers import processes
from support.servers.inprocess import ask, asking, post
from support.waiting import eventually

WORDS = ["stars", "suns", "law", "rain", "sea", "hydrogen", "court", "wind"]
TEXTS = [f"{word} burns and rain falls" for word in WORDS]
CLIENTS = 8
PROMPTED = "Qwen/Qwen3-Reranker-0.6B"
SWAP = {"model": PROMPTED, "replay": 6, "max_difference": 0.4}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return versions of a model: a, a copy of it, another one, and one that takes an instruction."""
    root = tmp_path_factory.mktemp("replay")
    for seed, name in enumerate("ab"):
        cross_encoders.make_cross_encoder(root / name, "bert", seed=seed)
    for name in ("tokenizer.json", "config.json"):  # training a tokenizer again may give a different one
        shutil.copy(root / "a" / name, root / "b")
    shutil.copytree(root / "a", root / "copy")
    make_decoder(root / "prompted", "qwen3")
    base = AutoModelForSequenceClassification.from_pretrained(root / "a")
    make_adapter(base, root / "law", target_modules=["query", "value"])
    for name, version in (("m", "a"), ("other", "b")):
        shutil.copytree(root / version, root / "models" / name)
    return root


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[TestClient]:
    models = {"m": root / "a", "other": root / "b"}
    adapter = (f"m:law={root / 'law'}",)
    with asking(
        models, source_roots=(str(root),), replay_buffer=6, batch_tokens=8, adapter=adapter
    ) as client:
        yield client


def swap(client: TestClient, source: Path, status: int = 200, **body: Any) -> Any:
    answer = post(client, "/v1/admin/swap", {"model": "m", "source": str(source), **body}, status)
    return answer.get("replay") if status == 200 else answer["error"]["message"]


def test_the_difference_decides_and_without_a_limit_there_is_only_a_report(
    client: TestClient, root: Path
) -> None:
    assert "not loaded" in swap(client, root / "b", 409, replay=3)
    post(client, "/v1/admin/load", {"model": "m"})
    assert "no requests of model 'm'" in swap(client, root / "b", 409, replay=3)
    before = [ask(client, "m", f"how do stars burn {i}", TEXTS, top_n=2) for i in range(7)]
    report = swap(client, root / "b", replay=3)
    assert report["requests"] == 3 and not report["switched"] and report["refused"] == []
    assert 0 < report["difference"] <= 1 and report["latency_ratio"] > 0 and report["top10_overlap"] == 1
    assert report["kendall_tau"] == pytest.approx(1 - 2 * report["difference"])
    limited = swap(client, root / "b", replay=100, max_difference=report["difference"] / 100)
    assert limited["requests"] == 6 and not limited["switched"] and "is above" in limited["notes"][-1]
    assert ask(client, "m", "how do stars burn 0", TEXTS, top_n=2) == before[0]
    same = swap(client, root / "copy", replay=100, max_difference=0)
    assert same["switched"] and same["difference"] == same["score_shift"] == same["largest_shift"] == 0
    assert swap(client, root / "b", replay=100, max_difference=1)["switched"]
    after = ask(client, "m", "how do stars burn 0", TEXTS, top_n=2)
    assert after != before[0] and after == ask(client, "other", "how do stars burn 0", TEXTS, top_n=2) | {
        "model": "m"
    }
    memory = [client.get(f"/v1/models/{name}").json()["memory_bytes"] for name in ("m", "other")]
    assert memory[0] == memory[1]  # the versions that were not switched to are freed


def test_requests_that_the_new_version_refuses_are_named_and_those_of_adapters_left_out(root: Path) -> None:
    models, adapter = {PROMPTED: root / "prompted", "m": root / "a"}, (f"m:law={root / 'law'}",)
    with asking(models, source_roots=(str(root),), replay_buffer=6, adapter=adapter) as client:
        for instruction in ({"instruction": "find laws"}, {}):
            ask(client, PROMPTED, "how", ["rain", "law"], **instruction)
        answer = post(client, "/v1/admin/swap", SWAP | {"source": str(root / "a")})["replay"]
        assert (answer["requests"], answer["refused_requests"], answer["switched"]) == (1, 1, False)
        assert "takes no instruction" in answer["refused"][0]["reason"] and answer["difference"] >= 0.5
        for model in ("m", "m:law"):
            ask(client, model, "how", ["rain", "law"])
        report = swap(client, root / "copy", replay=6, max_difference=0)
        assert (report["requests"], report["switched"]) == (1, True)
        assert report["notes"] == ["1 requests name an adapter, which is loaded after the switch; left out"]
        assert ask(client, "m:law", "how", ["rain", "law"])["scores"]


def test_bad_requests_name_field_and_next_step(client: TestClient, root: Path) -> None:
    assert swap(client, root / "b", 400, max_difference=0.1).endswith("`$.max_difference`")
    for body in ({"replay": 0}, {"replay": 10_001}, {"replay": 3, "max_difference": 2}, {"replays": 3}):
        assert list(body)[-1] in swap(client, root / "b", 400, **body)
    unknown = {"model": "x", "source": str(root / "b"), "replay": 3}
    assert "not known" in post(client, "/v1/admin/swap", unknown, 404)["error"]["message"]
    with asking({"m": root / "a"}, source_roots=(str(root),)) as off:
        ask(off, "m", "q", TEXTS)  # waits for the load
        assert "replay_buffer" in swap(off, root / "b", 409, replay=3)


def test_stages_of_a_cascade_are_replayed_as_requests_to_their_models(root: Path, tmp_path: Path) -> None:
    for name in "ab":
        shutil.copytree(root / name, tmp_path / name)
    stages = [{"model": "a", "keep": 3}, {"model": "b"}]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({"id": "two", "stages": stages}))
    with asking({}, models_dir=str(tmp_path), models_dir_poll_s=0, replay_buffer=3) as client:
        ask(client, "two", "how do stars burn", TEXTS)
        answer = post(client, "/v1/admin/swap", {"model": "b", "source": str(tmp_path / "a"), "replay": 3})
        assert answer["replay"]["requests"] == 1
        assert "sie_replay_buffer_bytes" in client.get("/metrics").text


def command(url: str, source: Path, *args: str) -> Result:
    return CliRunner().invoke(cli, ["admin", "swap", "m", str(source), "--url", url, *args])


def test_under_load_no_request_fails_and_a_version_that_differs_is_not_switched_to(
    root: Path, tmp_path: Path
) -> None:
    args = [f"--model=m={root / 'a'}", f"--source-roots={root}", "--dtype=float32", "--batch-tokens=8"]
    items = [Item(id=str(i), text=text) for i, text in enumerate(TEXTS)]
    with processes.running(tmp_path, *args, "--replay-buffer=40") as server:
        over, answers = Event(), list[str]()

        def run(number: int) -> None:
            with SIEClient(server.base_url) as sdk:
                while not over.is_set():
                    scores = sdk.score("m", Item(text=f"how do stars burn {number}"), items)["scores"]
                    answers.append(json.dumps([number, scores]))

        with ThreadPoolExecutor(CLIENTS) as pool:
            running = [pool.submit(run, number) for number in range(CLIENTS)]
            try:
                assert eventually(lambda: len(answers) > 40)
                refused = command(server.base_url, root / "b", "--replay", "30", "--max-difference", "0.001")
                reported = command(server.base_url, root / "b", "--replay", "30")
                assert len(set(answers)) == CLIENTS  # each got the answers of one version
                done = command(server.base_url, root / "copy", "--replay", "30", "--max-difference", "0.001")
                switched = command(
                    server.base_url, root / "b", "--replay", "30", "--max-difference", "1", "--json"
                )
            finally:
                over.set()
            for one in running:
                one.result()  # no request has failed
        assert (
            refused.exit_code == 1 and "switched\tno" in refused.output and "is above 0.001" in refused.output
        )
        assert (
            reported.exit_code == 0 and "switched\tno" in reported.output and "report only" in reported.output
        )
        assert done.exit_code == 0 and "switched\tyes" in done.output and "difference\t0.0000" in done.output
        assert json.loads(switched.output)["replay"]["requests"] == 30
        assert len(set(answers)) <= 2 * CLIENTS
        assert server.metric("sie_replay_buffer_bytes") > 0
