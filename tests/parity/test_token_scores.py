"""`POST /v1/inspect` with `options.token_scores`: the shown similarities add up to the score of the same request."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import transformers
from starlette.testclient import TestClient

from sie_server.serving.requests import inspection
from support.checkpoints.colbert import make_pylate, make_stanford
from support.checkpoints.cross_encoders import make_cross_encoder, random_text
from support.families.adapters import make_adapter
from support.servers.inprocess import asking, in_order, post

RNG = random.Random(19)
TEXTS = ["", "- ? -", "stars stars"] + [random_text(RNG, n) for n in (1, 9, 35, 35, 80)]
TEXTS.append(TEXTS[-1])  # equal texts share one sequence
MODELS = ["pylate", "stanford", "sie/mini-en"]
SIX_DIGITS = 5e-5  # the sum of up to 32 rounded similarities


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    root = tmp_path_factory.mktemp("models")
    make_pylate(root / "pylate", "bert")
    make_stanford(root / "stanford", "xlm-roberta", {"dim": 16, "query_maxlen": 20, "doc_maxlen": 40})
    make_cross_encoder(root / "cross", "bert")
    base = transformers.AutoModel.from_pretrained(root / "pylate")
    make_adapter(base, root / "adapter", r=4, target_modules=["query", "value"])
    found = {name: root / name for name in ("pylate", "stanford", "cross")}
    adapter = (f"pylate:mine={root / 'adapter'}",)
    with asking(found, adapter=adapter) as client:  # which also serves the embedded model
        yield client


def body(texts: list[str] = TEXTS, **options: Any) -> Any:
    items = [{"text": text} for text in texts]
    return {"query": {"text": "do stars burn rain?"}, "items": items, "options": options}


def inspected(client: TestClient, model: str, request: Any) -> Any:
    request = {**request, "options": {**request["options"], "token_scores": True}}
    return post(client, f"/v1/inspect/{model}", request)


def total(shown: Any, text: Any) -> float:
    """Add up what the response shows, as docs/http-api.md says."""
    found = text["token_scores"]
    best = [max(row) for row in found["similarities"]]
    weights = shown["query_tokens"]["weights"]
    return sum(w * b for w, b in zip(weights, best, strict=True)) + found.get("pooled", 0.0)


@pytest.mark.parametrize("model", [*MODELS, "pylate:mine"])
def test_similarities_add_up_to_the_score(client: TestClient, model: str) -> None:
    scored = in_order(post(client, f"/v1/score/{model}", body()))
    shown = inspected(client, model, body())
    assert len(shown["items"]) == len(TEXTS)
    for score, text in zip(scored, shown["items"], strict=True):
        found = text["token_scores"]
        assert total(shown, text) == pytest.approx(score, abs=SIX_DIGITS)
        assert found["score"] == pytest.approx(score, abs=1e-5)
        assert ("pooled" in found) == (model == "sie/mini-en")


def test_an_adapter_changes_the_similarities(client: TestClient) -> None:
    one, other = (inspected(client, model, body(TEXTS[-1:])) for model in ("pylate", "pylate:mine"))
    assert one["items"][0]["tokens"] == other["items"][0]["tokens"]
    assert abs(total(one, one["items"][0]) - total(other, other["items"][0])) > 1e-3


@pytest.mark.parametrize("model", MODELS)
def test_windows_add_up_to_the_score_of_the_best(client: TestClient, model: str) -> None:
    request = body(TEXTS[3:], long_document="chunk", max_seq_length=16, chunk_overlap=2)
    scored = in_order(post(client, f"/v1/score/{model}", request))
    shown = inspected(client, model, request)
    assert len(shown["items"]) > len(request["items"])
    for i, score in enumerate(scored):
        windows = [text for text in shown["items"] if text["item_id"] == f"item-{i}"]
        assert max(total(shown, each) for each in windows) == pytest.approx(score, abs=SIX_DIGITS)


@pytest.mark.parametrize("model", MODELS)
def test_rows_and_columns_name_their_tokens(client: TestClient, model: str) -> None:
    shown = inspected(client, model, body())
    rows = shown["query_tokens"]["positions"]
    assert rows == sorted(set(rows)) and len(rows) == len(shown["query_tokens"]["weights"])
    assert rows[-1] < len(shown["query"]["tokens"])
    for text in shown["items"]:
        found = text["token_scores"]
        assert len(found["similarities"]) == len(rows)
        assert {len(row) for row in found["similarities"]} == {len(found["positions"])}
        assert found["positions"][-1] < len(text["tokens"])
    if model == "pylate":  # punctuation is read, but not matched
        skipped = shown["items"][1]
        matched = [skipped["tokens"][place] for place in skipped["token_scores"]["positions"]]
        assert "?" in skipped["tokens"] and "?" not in matched


def test_the_same_word_matches_itself_best(client: TestClient) -> None:
    request = {"query": {"text": "stars"}, "items": [{"text": "rain and stars"}], "options": {}}
    shown = inspected(client, "sie/mini-en", request)
    [text] = shown["items"]
    row = shown["query_tokens"]["positions"].index(shown["query"]["tokens"].index("stars"))
    similar = text["token_scores"]["similarities"][row]
    best = text["token_scores"]["positions"][similar.index(max(similar))]
    assert text["tokens"][best] == "stars"


def test_other_models_and_other_routes_say_so(client: TestClient) -> None:
    request = body(TEXTS[3:5], token_scores=True)
    refused = post(client, "/v1/inspect/cross", request, 400)["error"]["message"]
    assert "late-interaction" in refused and "$.options.token_scores" in refused
    warnings = post(client, "/v1/score/pylate", request)["warnings"]
    assert "option 'token_scores' has no effect on score and was ignored" in warnings
    plain = post(client, "/v1/inspect/pylate", body(TEXTS[3:5], token_scores=False))
    assert "query_tokens" not in plain and "token_scores" not in plain["items"][0]


def test_the_response_is_bounded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    few = body(TEXTS[3:4])
    shown = inspected(client, "pylate", few)
    count = len(shown["query"]["tokens"]) * len(shown["items"][0]["tokens"])
    few["options"]["token_scores"] = True
    monkeypatch.setattr(inspection, "MOST_SIMILARITIES", count)
    post(client, "/v1/inspect/pylate", few)
    monkeypatch.setattr(inspection, "MOST_SIMILARITIES", count - 1)
    message = post(client, "/v1/inspect/pylate", few, 400)["error"]["message"]
    assert f"this request has {count:,}" in message and "$.items" in message


def test_a_run_is_charged_and_plain_inspection_is_not(client: TestClient) -> None:
    def inferred(request: Any) -> float:
        answer = client.post("/v1/inspect/pylate", json=request)
        assert answer.status_code == 200
        return float(answer.headers["x-inference-time"])

    assert inferred(body()) == 0
    assert inferred(body(token_scores=True)) > 0
