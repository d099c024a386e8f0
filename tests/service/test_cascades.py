"""Cascades through the real application: documents, options, adapters, swaps, dialects, deadlines, evaluation."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from starlette.testclient import TestClient
from transformers import AutoModelForSequenceClassification

from sie_sdk.calls import Asked, _read_score
from sie_sdk.codec import MSGPACK, encode_body
from sie_sdk.errors import ProtocolError
from sie_sdk.flow import Reply
from sie_server.cli.commands import cli
from sie_server.errors import ModelLoadFailed
from sie_server.serving.metrics import RequestTiming
from sie_server.wire import Item, ScoreRequest
from support.checkpoints.cross_encoders import make_cross_encoder
from support.families.adapters import make_adapter
from support.judged import write_beir
from support.servers.inprocess import ask, asking, post, serving
from support.waiting import until

QUERY = "how do stars burn"
TEXTS = [
    f"{word} burns {'hydrogen ' * (i % 3)}and rain falls"
    for i, word in enumerate(["stars", "suns", "law", "rain", "sea"] * 2)
]
TEXTS = [f"{text} {i}" for i, text in enumerate(TEXTS)]
KEEP = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a models directory with three models, an adapter, and cascades of them."""
    root = tmp_path_factory.mktemp("cascades")
    for seed, name in enumerate(("cheap", "strong", "other")):
        make_cross_encoder(root / "toy" / name, "bert", seed=seed)
    base = AutoModelForSequenceClassification.from_pretrained(root / "toy/strong")
    adapter = make_adapter(base, root.parent / "law", target_modules=["query", "value"])
    strong = {"id": "strong", "source": str(root / "toy/strong"), "license": "mit", "description": "",
              "outputs": ["score"], "max_seq_length": 64, "adapters": {"law": str(adapter)}}  # fmt: skip
    (root / "strong.yaml").write_text(yaml.safe_dump(strong))
    stages = [{"model": "toy/cheap", "keep": KEEP}, {"model": "strong"}]
    profiles = {"best": {"top_n": 1}}
    write(root, "two", stages, profiles=profiles, aliases=["acme/two"])
    write(root, "three", [{"model": "toy/other", "keep": 6}, *stages])
    narrow = {"model": "strong", "options": {"max_seq_length": 16}}
    write(root, "narrow", [{"model": "toy/cheap", "keep": KEEP}, narrow])
    write(root, "broken", [{"model": "gone", "keep": 6}, *stages])
    return root


def write(root: Path, name: str, stages: Any, **more: Any) -> None:
    (root / f"{name}.yaml").write_text(yaml.safe_dump({"id": name, "stages": stages, **more}))


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[TestClient]:
    # one pair per pass, so that the other documents of a request do not change the last bits of a score
    with asking({}, models_dir=str(root), models_dir_poll_s=0, batch_tokens=8) as client:
        yield client


def expected(client: TestClient, **options: Any) -> tuple[list[Any], list[str]]:
    """Return the entries and pruned ids of `two`, from requests to its models."""
    first = [entry["item_id"] for entry in ask(client, "toy/cheap", QUERY, TEXTS)["scores"]]
    kept = sorted(first[:KEEP], key=lambda name: int(name.removeprefix("item-")))
    items = [{"id": name, "text": TEXTS[int(name.removeprefix("item-"))]} for name in kept]
    body = {"query": {"text": QUERY}, "items": items, "options": options}
    return post(client, "/v1/score/strong", body)["scores"], first[KEEP:]


def test_the_last_stage_ranks_what_the_first_one_kept(client: TestClient) -> None:
    found = ask(client, "two", QUERY, TEXTS)
    entries, pruned = expected(client)
    assert found["scores"] == entries and len(entries) == KEEP
    one, two = found["stages"]
    assert (one["model"], one["pruned"], two["model"], two["pruned"]) == ("toy/cheap", pruned, "strong", [])
    assert (
        found["usage"]["input_tokens"] == one["input_tokens"] + two["input_tokens"] > two["input_tokens"] > 0
    )
    assert found["score_type"] == "probability" and "warnings" not in found and found["model"] == "two"
    assert ask(client, "acme/two", QUERY, TEXTS)["scores"] == entries


def test_options_of_the_answer_are_those_of_the_last_stage(client: TestClient) -> None:
    options = {"normalize": "none", "return_documents": True, "top_n": 2}
    entries, _ = expected(client, **options)
    found = ask(client, "two", QUERY, TEXTS, **options)
    assert found["scores"] == entries and found["top_n"] == 2 and found["score_type"] == "logit"
    assert len(ask(client, "two", QUERY, TEXTS, profile="best")["scores"]) == 1
    over = ask(client, "two", QUERY, TEXTS, top_n=KEEP + 1)
    assert len(over["scores"]) == KEEP and "top_n is 5" in over["warnings"][0]
    refused = ask(client, "two", QUERY, TEXTS, 400, normalize="calibrated")["error"]["message"]
    assert "sie-server calibrate" in refused


def test_stages_with_nothing_to_prune_do_not_run(client: TestClient) -> None:
    found = ask(client, "two", QUERY, TEXTS[:KEEP])
    assert found["scores"] == ask(client, "strong", QUERY, TEXTS[:KEEP])["scores"]
    assert found["stages"][0] == {"model": "toy/cheap", "input_tokens": 0, "pruned": []}
    three = ask(client, "three", QUERY, TEXTS)["stages"]
    assert [len(stage["pruned"]) for stage in three] == [4, 2, 0]
    assert len({name for stage in three for name in stage["pruned"]}) == 6


def test_long_documents_are_read_alike_by_every_stage(client: TestClient) -> None:
    long = ["rain " * 400 + text for text in TEXTS]
    cut = ask(client, "two", QUERY, long)
    assert any(text.startswith("stage 1 (toy/cheap): 10 of 10 texts") for text in cut["warnings"])
    assert any(text.startswith("4 of 4 texts") for text in cut["warnings"])
    whole = ask(client, "two", QUERY, long, long_document="chunk", aggregate="mean")
    assert "warnings" not in whole and whole["scores"][0]["chunk"]["count"] > 1
    assert whole["usage"]["input_tokens"] > cut["usage"]["input_tokens"]
    message = ask(client, "two", QUERY, [*TEXTS, long[0]], 400, long_document="refuse")["error"]["message"]
    assert message.startswith("stage 1 (toy/cheap)") and message.endswith("`$.items[10]`")


def test_errors_of_the_last_stage_name_the_item_of_the_request(client: TestClient) -> None:
    _, pruned = expected(client)
    texts = sorted(TEXTS, key=lambda text: f"item-{TEXTS.index(text)}" not in pruned)  # the pruned ones first
    message = ask(client, "narrow", QUERY, texts, 400, long_document="refuse")["error"]["message"]
    assert message.endswith(f"`$.items[{len(pruned)}]`")


def test_an_adapter_belongs_to_the_last_stage(client: TestClient) -> None:
    entries, _ = expected(client, lora="law")
    assert ask(client, "two:law", QUERY, TEXTS)["scores"] == entries != expected(client)[0]
    assert ask(client, "two", QUERY, TEXTS, lora="law")["scores"] == entries
    assert "no adapter 'tax'" in ask(client, "two:tax", QUERY, TEXTS, 404)["error"]["message"]
    assert client.get("/v1/models/two").json()["adapters"][0]["name"] == "law"


def test_models_and_metrics_describe_it(client: TestClient) -> None:
    info = client.get("/v1/models/two").json()
    assert info["stages"] == [{"model": "toy/cheap", "keep": KEEP}, {"model": "strong", "keep": None}]
    assert (info["state"], info["outputs"], info["profiles"]) == ("loaded", ["score"], ["default", "best"])
    broken = client.get("/v1/models/broken").json()
    assert broken["state"] == "failed" and "'gone' is not known" in broken["last_error"]
    assert "'gone' is not known" in ask(client, "broken", QUERY, TEXTS, 502)["error"]["message"]
    shown = post(client, "/v1/inspect/two", {"query": {"text": QUERY}, "items": [{"text": t} for t in TEXTS]})
    strong = post(
        client, "/v1/inspect/strong", {"query": {"text": QUERY}, "items": [{"text": t} for t in TEXTS]}
    )
    assert shown == {**strong, "model": "two"} and len(shown["items"]) == len(TEXTS)
    ask(client, "two", QUERY, TEXTS)
    assert 'sie_stage_documents_total{model="two",stage="strong"}' in client.get("/metrics").text


def test_what_needs_weights_names_the_stages(client: TestClient) -> None:
    encoded = post(client, "/v1/encode/two", {"items": [{"text": "a"}]}, 400)
    for answer in (encoded, post(client, "/v1/admin/load", {"model": "two"}, 400),
                   post(client, "/v1/admin/swap", {"model": "two", "source": "org/x"}, 400)):  # fmt: skip
        assert "(toy/cheap, strong)" in answer["error"]["message"]


def test_other_apis_leave_pruned_documents_out_or_refuse(client: TestClient) -> None:
    entries, _ = expected(client, normalize="none")
    body = {"model": "two", "query": QUERY, "documents": TEXTS}
    answer = client.post("/v2/rerank", json=body)
    assert [f"item-{hit['index']}" for hit in answer.json()["results"]] == [e["item_id"] for e in entries]
    assert json.loads(answer.headers["x-sie-warnings"])[0].startswith("6 of 10 documents were pruned")
    pairs = {"model": "two", "text_1": QUERY, "text_2": TEXTS}
    assert "needs a score for each" in client.post("/score", json=pairs).text
    assert len(client.post("/score", json={**pairs, "text_2": TEXTS[:3]}).json()["data"]) == 3
    several = {"model": "two", "text_1": [QUERY, "other"], "text_2": TEXTS[:2]}
    assert "documents of one query" in client.post("/score", json=several).text


async def test_stages_use_the_serving_version_and_the_callers_deadline(root: Path) -> None:
    asked = {"models_dir": str(root), "models_dir_poll_s": 0, "batch_tokens": 8, "model": ("two",)}
    request = ScoreRequest(Item(text=QUERY), [Item(text=text) for text in TEXTS])
    async with serving(**asked) as service:
        await service.preload()
        assert all(service.registry.slot(name).pinned for name in ("toy/cheap", "strong"))
        before, timing = await service.score("two", request, RequestTiming()), RequestTiming()
        await service.admin.swap("toy/cheap", str(root / "toy/other"))
        after = await service.score("two", request, timing)
        assert before.stages != after.stages and timing.items == len(TEXTS)
        assert timing.tokens == after.usage.input_tokens
        burst = [service.score("two", request, RequestTiming()) for _ in range(6)]
        answers, _ = await asyncio.gather(
            asyncio.gather(*burst), service.admin.swap("strong", str(root / "toy/other"))
        )
        last = await service.score("two", request, RequestTiming())
        assert all(answer.scores in (after.scores, last.scores) for answer in answers)
        late = RequestTiming()
        late.set_deadline(0.001)
        with pytest.raises(Exception, match="deadline"):
            await service.score("two", request, late)


async def test_an_id_may_become_a_cascade_and_a_stage_may_leave_while_the_server_runs(
    root: Path, tmp_path: Path
) -> None:
    for name in ("cheap", "strong"):
        shutil.copytree(root / "toy" / name, tmp_path / name)
    write(tmp_path, "x", [{"model": "cheap", "keep": 2}, {"model": "strong"}])
    request = ScoreRequest(Item(text=QUERY), [Item(text=text) for text in TEXTS])
    async with serving(models_dir=str(tmp_path), models_dir_poll_s=0.05) as service:

        async def stages() -> int:
            answer = await service.score("x", request, RequestTiming())
            return len(answer.stages or ())

        assert await stages() == 2
        (tmp_path / "x.yaml").unlink()
        shutil.copytree(root / "toy/cheap", tmp_path / "x")
        await until(lambda: "x" in service.registry and not service.registry.info("x").stages)
        assert await stages() == 0 and service.registry.slot("x").serving
        shutil.rmtree(tmp_path / "x")
        write(tmp_path, "x", [{"model": "cheap", "keep": 2}, {"model": "strong"}])
        await until(lambda: "x" in service.registry and bool(service.registry.info("x").stages))
        await until(lambda: not service.registry.slot("x").versions)
        assert await stages() == 2
        shutil.rmtree(tmp_path / "strong")
        await until(lambda: service.registry.info("x").state == "failed")
        with pytest.raises(ModelLoadFailed, match="'strong' is not known"):
            await stages()


def test_the_quota_of_a_key_counts_all_stages(client: TestClient, root: Path, tmp_path: Path) -> None:
    total = ask(client, "two", QUERY, TEXTS)["usage"]["input_tokens"]
    keys = {"narrow": total - 1, "wide": total}
    (tmp_path / "keys.toml").write_text(
        "".join(
            f'[[key]]\nname = "{name}"\nkey = "{name}-3f9a27c1d05b"\nlimits = {{tokens_per_minute = {limit}}}\n'
            for name, limit in keys.items()
        )
    )
    with asking(
        {},
        models_dir=str(root),
        models_dir_poll_s=0,
        batch_tokens=8,
        api_keys_file=str(tmp_path / "keys.toml"),
    ) as limited:
        limited.headers["x-api-key"] = "narrow-3f9a27c1d05b"
        message = ask(limited, "two", QUERY, TEXTS, 400)["error"]["message"]
        assert f"{total} tokens" in message
        limited.headers["x-api-key"] = "wide-3f9a27c1d05b"
        assert ask(limited, "two", QUERY, TEXTS)["usage"]["input_tokens"] == total
        ask(limited, "two", QUERY, TEXTS, 429)


def test_eval_shows_what_a_cascade_costs(root: Path, tmp_path: Path) -> None:
    data = write_beir(tmp_path / "words", queries=6, documents=30)
    args = ["eval", f"--data={data}", "--model=two", "--model=strong", f"--models-dir={root}", "--depth=10"]
    done = CliRunner().invoke(cli, [*args, "--dtype=float32", "--offline", f"--out={tmp_path / 'out'}"])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out/report.json").read_bytes())
    two, strong = report["sets"][0]["models"]
    assert [(s["model"], s["documents"]) for s in two["stages"]] == [
        ("toy/cheap", 10.0),
        ("strong", float(KEEP)),
    ]
    assert two["tokens"] == pytest.approx(sum(s["tokens"] for s in two["stages"])) and not strong["stages"]
    text = (tmp_path / "out/report.md").read_text()
    assert "### two: stages" in text and "toy/cheap alone | not evaluated" in text
    runs = (tmp_path / "out/runs/words--two.trec").read_text().splitlines()
    assert len(runs) == 60  # pruned documents are ranked last
    refused = CliRunner().invoke(cli, ["calibrate", "two", f"--data={data}", f"--models-dir={root}"])
    assert refused.exit_code == 1 and "calibrate strong" in refused.output


@pytest.mark.parametrize("pruned", [["c"], ["b"], [None], "c", []])
def test_the_client_checks_that_each_item_is_ranked_or_pruned_once(pruned: Any) -> None:
    body = {
        "model": "m",
        "scores": [{"item_id": "b", "score": 1.0, "rank": 0}],
        "stages": [{"model": "x", "pruned": pruned}],
    }
    reply = Reply(200, {"content-type": MSGPACK}, encode_body(body))
    asked = Asked("q", ("b", "c"), None)
    if pruned == ["c"]:
        assert _read_score(reply, asked)["stages"][0]["pruned"] == ["c"]
    else:
        with pytest.raises(ProtocolError):
            _read_score(reply, asked)
