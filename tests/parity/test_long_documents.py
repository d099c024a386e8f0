"""Documents over the limit are read in overlapping windows: each window's score, the aggregate, the span, the cost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sie_server.catalog import EMBEDDED
from sie_server.engine.engine import Engine
from sie_server.engine.job import Chunking, ScoreTexts
from support.checkpoints.cross_encoders import FAMILIES, make_cross_encoder, random_text
from support.device import DEVICE
from support.requests.jobs import run_job
from support.servers.inprocess import ask, asking, in_order, post

LIMIT = 48
QUERY = "how stars burn hydrogen"
RNG = random.Random(4)
DOCUMENTS = [random_text(RNG, n) for n in (0, 1, 3, 30, 80, 200)] + [
    "naïve café " * 40 + "3.14",
    "東京" * 60,
]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cross_encoder(tmp_path_factory.mktemp(request.param), request.param, max_length=LIMIT)


def stripped(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def by_hand(directory: Path, text: str, overlap: int) -> tuple[list[float], list[tuple[int, int]]]:
    """Return scores and spans of windows of the reference's ids, each run through transformers after the query."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    query = tokenizer(QUERY, add_special_tokens=False).input_ids
    whole = tokenizer(text, add_special_tokens=False)
    # offsets come from the file, because transformers moves those of a lone space to the next character
    plain = Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text, add_special_tokens=False)
    assert plain.ids == whole.input_ids
    room = LIMIT - len(query) - tokenizer.num_special_tokens_to_add(pair=True)
    scores, spans = [], []
    for start in range(0, max(1, len(whole.input_ids) - overlap), room - overlap):
        part = whole.input_ids[start : start + room]
        offsets = plain.offsets[start : start + room]
        spans.append(stripped(text, offsets[0][0], offsets[-1][1]) if part else (0, 0))
        head = [tokenizer.cls_token_id, *query, tokenizer.sep_token_id]
        head += [] if tokenizer.num_special_tokens_to_add(pair=True) == 3 else [tokenizer.sep_token_id]
        ids = [*head, *part, tokenizer.sep_token_id]
        types = [0] * len(head) + [1] * (len(part) + 1)
        extra = (
            {"token_type_ids": torch.tensor([types])}
            if getattr(model.config, "type_vocab_size", 0) == 2
            else {}
        )
        with torch.inference_mode():
            scores.append(float(model(input_ids=torch.tensor([ids]), **extra).logits))
    return scores, spans


def test_every_window_scores_as_the_reference(directory: Path) -> None:
    engine = Engine(directory, device=DEVICE, dtype="float32")
    job = engine.tokenize_score(ScoreTexts(QUERY, DOCUMENTS, LIMIT, chunking=Chunking(7, 100)))
    run_job(engine, job)
    assert job.chunks is not None
    for number, text in enumerate(DOCUMENTS):
        ours = [(c, r) for c, r in zip(job.chunks, job.results, strict=True) if c.document == number]
        scores, spans = by_hand(directory, text, 7)
        np.testing.assert_allclose([r for _, r in ours], scores, atol=1e-4, rtol=0)
        assert [(c.start, c.end) for c, _ in ours] == spans
        assert [(c.index, c.count) for c, _ in ours] == [(i, len(spans)) for i in range(len(spans))]
    assert max(chunk.count for chunk in job.chunks) > 5
    assert not any(job.truncated)


@pytest.mark.parametrize("aggregate", [None, "max", "mean"])
def test_the_answer_is_the_aggregate_and_the_best_span(directory: Path, aggregate: str | None) -> None:
    options: dict[str, Any] = {"long_document": "chunk", "chunk_overlap": 7, "normalize": "none"}
    with asking({"toy": directory}) as client:
        answer = ask(client, "toy", QUERY, DOCUMENTS, aggregate=aggregate, **options)
    chunks = in_order(answer, "chunk")
    for text, score, chunk in zip(DOCUMENTS, in_order(answer), chunks, strict=True):
        scores, spans = by_hand(directory, text, 7)
        expected = sum(scores) / len(scores) if aggregate == "mean" else max(scores)
        assert score == pytest.approx(expected, abs=1e-4)
        assert scores[chunk["index"]] == pytest.approx(max(scores), abs=1e-4)
        assert (chunk["start"], chunk["end"], chunk["count"]) == (*spans[chunk["index"]], len(spans))
    assert "warnings" not in answer


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    toy = make_cross_encoder(tmp_path_factory.mktemp("toy"), "bert", max_length=LIMIT)
    with asking({"toy": toy, "mini": EMBEDDED / "mini-en"}, max_chunks=4) as client:
        yield client


def test_the_needle_is_found_where_truncation_loses_it(client: TestClient) -> None:
    needle = "Stars burn hydrogen into helium in their cores."
    hay = "The contract names the harbour, the lawyers and the price of bread. " * 10
    text = hay + needle + hay
    limit = {"max_seq_length": 128}
    cut = ask(client, "mini", QUERY, [text, hay], **limit)
    found = ask(client, "mini", QUERY, [text, hay], long_document="chunk", **limit)
    assert in_order(found)[0] > in_order(cut)[0] + 0.2
    span = in_order(found, "chunk")[0]
    assert span["start"] <= text.index(needle) and text.index(needle) + len(needle) <= span["end"]
    assert found["score_type"] == "maxsim"
    assert found["usage"]["input_tokens"] > cut["usage"]["input_tokens"] + 128


def test_windows_of_the_embedded_model_score_as_their_texts_alone(client: TestClient) -> None:
    """Windows split at spaces, so tokenising the text of a window yields the window's tokens."""
    text = " ".join(f"word{i % 7} rain" for i in range(120))
    options = {"max_seq_length": 64, "long_document": "chunk", "chunk_overlap": 0}
    answer = ask(client, "mini", QUERY, [text[:700]], **options)
    [entry] = answer["scores"]
    span = entry["chunk"]
    assert span["count"] > 1
    alone = ask(client, "mini", QUERY, [text[span["start"] : span["end"]]], max_seq_length=64)
    assert entry["score"] == pytest.approx(alone["scores"][0]["score"], abs=1e-4)


def test_short_documents_score_as_without_splitting(client: TestClient) -> None:
    texts = ["rain falls", "stars burn hydrogen", ""]
    plain = ask(client, "toy", QUERY, texts, normalize="none")
    chunked = ask(client, "toy", QUERY, texts, normalize="none", long_document="chunk")
    np.testing.assert_allclose(in_order(chunked), in_order(plain), atol=1e-5)
    assert plain["usage"] == chunked["usage"]
    assert [c["count"] for c in in_order(chunked, "chunk")] == [1, 1, 1]


def test_the_cost_is_bounded_and_the_bound_is_reported(client: TestClient) -> None:
    texts = ["rain falls over the harbour " * 50_000, "rain"]
    answer = ask(client, "toy", QUERY, texts, long_document="chunk")
    assert in_order(answer, "chunk")[0]["count"] == 4
    assert answer["usage"]["input_tokens"] <= 5 * LIMIT
    assert "1 of 2 documents have more than 4 chunks" in answer["warnings"][0]
    flags = {entry["item_id"]: entry.get("truncated") for entry in answer["scores"]}
    assert flags == {"item-0": True, "item-1": None}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"long_document": "split"}, "long_document"),
        ({"long_document": "chunk", "chunk_overlap": -1}, "chunk_overlap"),
        ({"long_document": "chunk", "chunk_overlap": LIMIT}, "chunk_overlap"),
        ({"long_document": "chunk", "aggregate": "sum"}, "aggregate"),
        ({"chunk_overlap": 3}, "chunk_overlap"),
        ({"long_document": "truncate", "aggregate": "max"}, "aggregate"),
    ],
)
def test_wrong_options_are_named(client: TestClient, options: dict[str, Any], field: str) -> None:
    answer = ask(client, "toy", QUERY, DOCUMENTS, 400, **options)
    assert f"$.options.{field}" in answer["detail"]["message"]


def test_a_window_that_is_not_a_number_is_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    directory = make_cross_encoder(tmp_path / "nan", "bert", max_length=LIMIT)
    weights = load_file(directory / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    word = tokenizer("company", add_special_tokens=False).input_ids[0]  # not in the texts of the probe
    weights["bert.embeddings.word_embeddings.weight"][word] = float("nan")
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    text = "stars burn " * 60 + "company " + "stars burn " * 60
    body = {"query": {"text": "stars"}, "items": [{"text": text}], "options": {"long_document": "chunk"}}
    with asking({"nan": directory}) as client:
        assert post(client, "/v1/score/nan", body, 500)["code"] == "INFERENCE_ERROR"


def test_shortened_documents_end_at_a_token(directory: Path) -> None:
    engine = Engine(directory, device=DEVICE)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    plain = DOCUMENTS[:-2]  # in the others, tokens may end within a character
    for most in (1, 2, 7, 1000):
        kept, cut = engine.shorten(DOCUMENTS, most)
        for text, short, was_cut in zip(DOCUMENTS, kept, cut, strict=True):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            assert was_cut == (len(ids) > most) and text.startswith(short)
            assert (short == text) if not was_cut else (len(short) < len(text))
            if text in plain:
                read = tokenizer.encode(short, add_special_tokens=False).ids
                # SentencePiece's word-start marker may be a token without characters
                assert read[:most] == ids[:most] and len(read) <= most + (directory.name[:3] == "xlm")
