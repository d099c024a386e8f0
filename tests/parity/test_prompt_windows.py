"""Long documents for causal rerankers: every window is the model card's prompt over one piece of the document."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sie_server.engine.engine import Engine
from sie_server.engine.job import Chunk, Chunking, Job, ScoreTexts
from support.checkpoints.cross_encoders import random_text
from support.checkpoints.decoders import DECODERS, make_decoder
from support.device import DEVICE
from support.families.decoder_cases import LIMIT, REFERENCES, TOLERANCE, Case, ids_of, make_case
from support.requests.jobs import run_job
from support.servers.inprocess import ask, asking, in_order, post

OVERLAP = 9
RNG = random.Random(5)
DOCUMENTS = [
    *(random_text(RNG, n) for n in (0, 1, 30, 250, 900)),
    "  naïve café " * 60 + "3.14\n\n",
    "日本 ü? 東京 🌍🌋" * 40,  # each character has several tokens
]


@pytest.fixture(scope="module", params=sorted(DECODERS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def job(case: Case) -> Job:
    job = case.engine.tokenize_score(
        ScoreTexts(case.query, DOCUMENTS, LIMIT, chunking=Chunking(OVERLAP, 1000))
    )
    for start in range(0, len(job.work), 5):
        part = job.work[start : start + 5]
        for work, result in zip(part, case.engine.run(part), strict=True):
            job.put(work.index, result)
    return job


def windows_of(job: Job, document: int) -> list[tuple[Chunk, list[int], float]]:
    assert job.chunks is not None
    ids: list[Any] = [None] * len(job.chunks)
    for work, own in zip(sorted(job.work, key=lambda work: work.index), ids_of(job), strict=True):
        for place in (work.index, *job.copies.get(work.index, ())):
            ids[place] = own
    found = zip(job.chunks, ids, job.results, strict=True)
    return [window for window in found if window[0].document == document]


def cut_ids(case: Case, text: str) -> list[list[int]]:
    """Return the reference's prompts, each with one window of the document's ids."""

    def whole(document: str) -> list[int]:
        return REFERENCES[case.template][0](case.tokenizer, case.query, document, None, 1_000_000)

    ids, other = whole(text), whole("zebra")
    same = next((i for i in range(len(ids)) if ids[i] != other[i]), len(ids))
    tail = next(i for i in range(1, len(ids)) if ids[-i] != other[-i]) - 1 if text else 0
    # a document may begin with the last token of the text before it, so limit this to the prompt without a document
    before = min(same, len(whole("")) - tail)
    own, room = ids[before : len(ids) - tail], LIMIT - before - tail
    starts = range(0, max(1, len(own) - OVERLAP), room - OVERLAP)
    return [ids[:before] + own[s : s + room] + ids[len(ids) - tail :] for s in starts]


def test_a_window_is_the_prompt_over_a_piece_of_the_document(case: Case, job: Job) -> None:
    for number, text in enumerate(DOCUMENTS):
        windows = windows_of(job, number)
        if case.template == "ctxl-rerank-v2":  # this prompt has text after the document in the same piece
            inner = text[windows[0][0].start : windows[0][0].end]
            expected = [case.reference_ids(case.query, text[c.start : c.end]) for c, _, _ in windows]
            if len(windows) == 1:
                expected = [
                    case.reference_ids(case.query, text)
                ]  # a document that is not split keeps its spaces
            elif not text.startswith(inner):
                windows, expected = windows[1:], expected[1:]
            if text.endswith("\n"):
                windows, expected = windows[:-1], expected[:-1]
        else:
            expected = cut_ids(case, text)
        assert [ids for _, ids, _ in windows] == expected, (number, len(windows))
        assert all(len(ids) <= LIMIT for ids in expected)
        np.testing.assert_allclose(
            [logit for _, _, logit in windows],
            [case.reference(ids) for ids in expected],
            atol=TOLERANCE,
            rtol=0,
        )


def test_windows_cover_the_document_and_overlap(case: Case, job: Job) -> None:
    assert job.chunks is not None and not any(job.truncated)
    for number, text in enumerate(DOCUMENTS):
        chunks = [chunk for chunk in job.chunks if chunk.document == number]
        assert [(c.index, c.count) for c in chunks] == [(i, len(chunks)) for i in range(len(chunks))]
        covered = np.zeros(len(text), bool)
        for chunk in chunks:
            covered[chunk.start : chunk.end] = True
            assert text[chunk.start : chunk.end] == text[chunk.start : chunk.end].strip()
        assert "".join(c for c, seen in zip(text, covered, strict=True) if not seen).strip() == ""
        for one, next_one in pairwise(chunks):
            assert one.start < next_one.start < one.end < next_one.end
    assert max(chunk.count for chunk in job.chunks) >= 3


def test_short_documents_are_read_as_without_splitting(case: Case) -> None:
    short = [text for text in case.documents if len(text) < 300]
    chunked = case.engine.tokenize_score(ScoreTexts(case.query, short, LIMIT, chunking=Chunking(None, 8)))
    assert ids_of(chunked) == ids_of(case.engine.tokenize_score(ScoreTexts(case.query, short, LIMIT)))


def test_every_window_contains_the_instruction(case: Case) -> None:
    if not case.engine.spec.takes_instruction:
        return
    told = case.engine.tokenize_score(
        ScoreTexts(case.query, DOCUMENTS, LIMIT, "be strict", chunking=Chunking(OVERLAP, 4))
    )
    plain = case.engine.tokenize_score(
        ScoreTexts(case.query, DOCUMENTS, LIMIT, chunking=Chunking(OVERLAP, 4))
    )
    text = case.engine.decode([*ids_of(told)[-1]])
    assert "be strict" in text and len(told.work) > len(DOCUMENTS)
    assert ids_of(told) != ids_of(plain)


def test_windows_share_their_prefix(case: Case, job: Job) -> None:
    assert job.prefix is None or job.tokens < job.input_tokens
    if case.template in (
        "qwen3-reranker",
        "mxbai-rerank-v2",
    ):  # the others start with a short text or the document
        assert job.prefix is not None


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    directory = make_decoder(tmp_path_factory.mktemp("windows"), request.param)
    (directory / "sie_reranker.yaml").write_text(f"template: {DECODERS[request.param][3]}")
    with asking({"toy": Path(directory)}, max_chunks=4) as client:
        yield client, Engine(directory, device=DEVICE, dtype="float32")


def test_the_best_window_is_the_answer(served: tuple[Any, Engine]) -> None:
    client, engine = served
    options = {"max_seq_length": 200, "chunk_overlap": 7, "normalize": "none", "long_document": "chunk"}
    answer = ask(client, "toy", "stars", DOCUMENTS, **options)
    job = engine.tokenize_score(ScoreTexts("stars", DOCUMENTS, 200, chunking=Chunking(7, 4)))
    run_job(engine, job)
    for number, (score, span) in enumerate(zip(in_order(answer), in_order(answer, "chunk"), strict=True)):
        logits = [logit for _, _, logit in windows_of(job, number)]
        assert score == pytest.approx(max(logits), abs=1e-4)
        assert span["count"] == len(logits) <= 4
    assert "have more than 4 chunks" in answer["warnings"][0]


def test_an_overlap_beyond_the_window_is_refused(served: tuple[Any, Engine]) -> None:
    client, _ = served
    answer = ask(client, "toy", "stars", DOCUMENTS, 400, long_document="chunk", chunk_overlap=5000)
    assert "$.options.chunk_overlap" in answer["detail"]["message"]


def test_inspect_shows_whole_windows(served: tuple[Any, Engine]) -> None:
    client, engine = served
    options = {"max_seq_length": 200, "chunk_overlap": 7, "long_document": "chunk"}
    body = {"query": {"text": "stars"}, "items": [{"text": text} for text in DOCUMENTS], "options": options}
    shown = post(client, "/v1/inspect/toy", body)["items"]
    job = engine.tokenize_score(ScoreTexts("stars", DOCUMENTS, 200, chunking=Chunking(7, 4)))
    for number in range(len(DOCUMENTS)):
        whole = [item["token_ids"] for item in shown if item["item_id"] == f"item-{number}"]
        assert whole == [ids for _, ids, _ in windows_of(job, number)]


def test_an_instruction_reaches_the_windows_of_a_request(served: tuple[Any, Engine]) -> None:
    client, engine = served
    options = {"max_seq_length": 250, "chunk_overlap": 7, "normalize": "none", "long_document": "chunk"}
    answer = ask(client, "toy", "stars", DOCUMENTS, instruction="be strict", **options)
    job = engine.tokenize_score(ScoreTexts("stars", DOCUMENTS, 250, "be strict", chunking=Chunking(7, 4)))
    run_job(engine, job)
    best = [max(logit for _, _, logit in windows_of(job, n)) for n in range(len(DOCUMENTS))]
    np.testing.assert_allclose(in_order(answer), best, atol=1e-4, rtol=0)
