"""`/v1/inspect` shows the reference tokenizer's output; `verify` finds real differences and no others."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from scipy.stats import kendalltau
from starlette.testclient import TestClient
from transformers import AutoTokenizer

from sie_server.catalog import EMBEDDED
from sie_server.cli.commands import cli
from sie_server.verify import judges
from sie_server.verify.cross_encoders import flag_embedding
from sie_server.verify.references import CannotVerify
from sie_server.verify.verify import kendall_tau, verify
from support.checkpoints.cross_encoders import make_cross_encoder
from support.checkpoints.decoders import make_decoder
from support.checkpoints.encoders import make_encoder
from support.families.every import EVERY
from support.servers.inprocess import ask, asking, post

LIMIT = 48
QUERY = "how stars burn hydrogen"
LONG = "Rain falls over the quiet harbour, nobody reads. " * 20
TEXTS = ["rain falls tomorrow", "", LONG]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cross_encoder(tmp_path_factory.mktemp("toy") / "bert", "bert", max_length=LIMIT)


@pytest.fixture(scope="module")
def client(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    encoder = make_encoder(tmp_path_factory.mktemp("encoder"))
    with asking(
        {"toy": toy, "mini": EMBEDDED / "mini-en", "encoder": encoder}, document_cache_mb=0
    ) as client:
        yield client


def inspect(client: TestClient, model: str, status: int = 200, **options: object) -> dict[str, object]:
    items = [{"text": text} for text in TEXTS]
    body = {"query": {"text": QUERY}, "items": items, "options": options}
    answer: dict[str, object] = post(client, f"/v1/inspect/{model}", body, status)
    return answer


def test_pairs_are_shown_as_the_reference_tokenizes_them(client: TestClient, toy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(toy)
    answer = inspect(client, "toy")
    assert answer["max_seq_length"] == LIMIT and answer["query_truncated"] is False and "query" not in answer
    for i, (text, item) in enumerate(zip(TEXTS, answer["items"], strict=True)):  # type: ignore[call-overload]
        # in lists, because an empty text alone would count as no second text
        [ids] = tokenizer([QUERY], [text], truncation="longest_first", max_length=LIMIT).input_ids
        assert item["item_id"] == f"item-{i}"
        assert item["token_ids"] == ids
        assert item["tokens"] == tokenizer.convert_ids_to_tokens(ids)
        assert item["text"].startswith("[CLS] how stars burn hydrogen [SEP]")
        assert (item["readout"], item["position"]) == ("first", 0)
        assert item["truncated"] is (text == LONG)


def test_truncated_texts_are_shown(client: TestClient, toy: Path) -> None:
    item = inspect(client, "toy")["items"][2]  # type: ignore[index]
    read = LONG[: item["read_to"]]
    tokenizer = AutoTokenizer.from_pretrained(toy)
    query = tokenizer(QUERY, add_special_tokens=False).input_ids
    assert item["token_ids"][len(query) + 2 : -1] == tokenizer(read, add_special_tokens=False).input_ids


def test_the_usage_of_a_score_equals_the_tokens_of_inspect(client: TestClient) -> None:
    for model in ("toy", "mini"):
        for options in ({}, {"long_document": "chunk", "max_seq_length": 40}):
            shown = inspect(client, model, **options)
            sequences = [*shown["items"], *([shown["query"]] if "query" in shown else [])]  # type: ignore[misc]
            total = sum(len(item["token_ids"]) for item in sequences)
            assert total == ask(client, model, QUERY, TEXTS, **options)["usage"]["input_tokens"]


def test_late_interaction_shows_the_query_separately(client: TestClient) -> None:
    answer = inspect(client, "mini", max_seq_length=32)
    query, long = answer["query"], answer["items"][2]  # type: ignore[index]
    assert query["text"] == "[CLS] how stars burn hydrogen [SEP]" and query["item_id"] is None  # type: ignore[index]
    assert long["readout"] == "all" and "position" not in long and long["truncated"]
    assert LONG[: long["read_to"]].lower().endswith(long["tokens"][-2].removeprefix("##"))


def test_windows_are_shown_with_their_characters(client: TestClient) -> None:
    items = inspect(client, "toy", long_document="chunk", chunk_overlap=0)["items"]
    windows = [item for item in items if item["item_id"] == "item-2"]  # type: ignore[union-attr,index,attr-defined]
    assert len(windows) == windows[0]["chunk"]["count"] > 3
    assert windows[-1]["chunk"]["end"] == len(LONG.rstrip())


def test_inspect_and_score_refuse_the_same_requests(client: TestClient) -> None:
    assert "score" in inspect(client, "encoder", 400)["detail"]["message"]  # type: ignore[index]
    assert "$.options" in inspect(client, "toy", 400, max_seq_length=3)["detail"]["message"]  # type: ignore[index]


# ── verify ──


def run(*args: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["verify", *args])
    return done.exit_code, done.output


def test_equal_cross_encoders_and_encoders_pass(toy: Path, tmp_path: Path) -> None:
    for directory in (toy, make_encoder(tmp_path / "encoder", prompts={"prompts": {"query": "q: "}})):
        status, output = run(f"m={directory}", "--pairs", "20", "--offline")
        assert status == 0, output
        assert "max |Δ|" in output and "Kendall tau  1.000000" in output and "token ids    equal" in output


@pytest.mark.parametrize(
    "name", ["ColBERT, Stanford", "ColBERT, PyLate", "SPLADE", "bge-m3, dense", "ettin", "deberta-v2"]
)
def test_every_kind_with_a_reference_passes(name: str, tmp_path: Path) -> None:
    made = EVERY[name].make(tmp_path)
    status, output = run(f"m={made.served}", "--pairs", "12", "--offline")
    assert status == 0, output
    assert "token ids    equal" in output


def test_a_causal_reranker_passes_under_its_template(tmp_path: Path) -> None:
    directory = make_decoder(tmp_path / "qwen", "qwen3")
    status, output = run(f"Qwen/Qwen3-Reranker-0.6B={directory}", "--pairs", "12", "--offline")
    assert status == 0, output
    assert "token ids    equal" in output


def test_a_different_truncation_is_found_by_its_token(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference cuts pairs by another rule than the server."""
    monkeypatch.setattr(judges, "cross_encoder", flag_embedding)
    status, output = run(f"m={toy}", "--pairs", "20", "--offline")
    assert status == 1
    assert "query of" in output and "ours [" in output and "the scores or token ids differ" in output


def test_a_difference_beyond_the_tolerance_fails(toy: Path) -> None:
    status, output = run(f"m={toy}", "--pairs", "20", "--offline", "--tolerance", "-1")
    assert status == 1 and "token ids    equal" in output and "the scores or token ids differ" in output


def test_weights_that_are_not_numbers_never_pass(toy: Path, tmp_path: Path) -> None:
    directory = make_cross_encoder(tmp_path / "nan", "bert", max_length=LIMIT)
    weights = load_file(directory / "model.safetensors")
    weights["classifier.bias"][0] = float("nan")
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    assert not verify(directory, 8).equal(1e9)


def test_without_a_reference_verify_says_why(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CannotVerify, match="no reference library"):
        verify(EMBEDDED / "mini-en", 5)
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if transformers were not installed
    with pytest.raises(CannotVerify, match="pip install transformers"):
        verify(toy, 5)


def test_kendall_tau_equals_scipys() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        first, second = (rng.integers(0, 9, 30).astype(float).tolist() for _ in range(2))
        assert kendall_tau(first, second) == pytest.approx(kendalltau(first, second).statistic)


def test_a_cut_query_is_reported_on_every_route(client: TestClient) -> None:
    body = {"query": {"text": LONG}, "items": [{"text": text} for text in TEXTS]}
    answer = client.post("/v1/score/toy", json=body, headers={"accept": "application/json"}).json()
    packed = client.post("/v1/score/toy", json=body, headers={"accept": "application/msgpack"})
    assert msgspec.msgpack.decode(packed.content)["query_truncated"] is True
    assert answer["query_truncated"] is True
    assert "the query was cut in one or more pairs" in answer["warnings"][0]
    assert post(client, "/v1/inspect/toy", body)["query_truncated"] is True
    assert "query_truncated" not in post(client, "/v1/score/toy", body | {"query": {"text": QUERY}})
    for path in ("/v2/rerank", "/v1/rerank"):
        vendor = client.post(path, json={"model": "toy", "query": LONG, "documents": TEXTS})
        assert "the query was cut" in json.loads(vendor.headers["x-sie-warnings"])[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [(LONG, "longer than max_seq_length 48"), (" " * 70_000 + "rain", "more than 65,536 characters")],
)
def test_warnings_name_the_reason_of_the_cut(client: TestClient, text: str, reason: str) -> None:
    for model in ("toy", "encoder"):
        route = f"/v1/score/{model}" if model == "toy" else f"/v1/encode/{model}"
        texts = [{"text": text}, {"text": "rain"}]
        body = {"query": {"text": QUERY}, "items": texts, "options": {"max_seq_length": LIMIT}}
        if model == "encoder":
            body = {"items": texts, "params": {"options": {"max_seq_length": LIMIT}}}
        [warning] = post(client, route, body)["warnings"]
        assert warning.startswith("1 of 2 texts") and reason in warning
    [warning] = post(client, "/v1/score/toy", {"query": {"text": text}, "items": [{"text": "rain"}]})[
        "warnings"
    ]
    assert warning.startswith("the query was cut") and (
        reason[:9] in warning or "65,536 characters" in warning
    )
