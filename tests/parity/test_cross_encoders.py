"""Raw fp32 logits of every cross-encoder family equal those of transformers, alone, in a batch and permuted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sie_server.engine.engine import Engine
from sie_server.engine.job import Job, ScoreTexts
from support.checkpoints.cross_encoders import FAMILIES, make_cross_encoder, random_text
from support.device import DEVICE
from support.requests.jobs import read_pairs, run_job

MAX_LENGTH = 96
PAIRS = 240
TOLERANCE = 1e-4


@dataclass
class Case:
    """One family's checkpoint, its pairs, and the ids and logits of transformers."""

    directory: Path
    engine: Engine
    query: str
    documents: list[str]
    ids: list[list[int]]
    logits: torch.Tensor


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    directory = make_cross_encoder(
        tmp_path_factory.mktemp(request.param), request.param, max_length=MAX_LENGTH
    )
    rng = random.Random(11)
    query = random_text(rng, 7)
    # every word count from 0 to far beyond the limit
    documents = [random_text(rng, n) for n in range(100)] + [
        random_text(rng, rng.randint(1, 90)) for _ in range(PAIRS - 100)
    ]
    ids, logits = reference(directory, query, documents)
    engine = Engine(directory, device=DEVICE, dtype="float32")
    yield Case(directory, engine, query, documents, ids, logits)


def reference(directory: Path, query: str, documents: list[str]) -> tuple[list[list[int]], torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    encoded = read_pairs(tokenizer, query, documents, MAX_LENGTH)
    with torch.inference_mode():
        logits = model(**encoded).logits[:, 0]
    kept = encoded.attention_mask.bool()
    return [row[mask].tolist() for row, mask in zip(encoded.input_ids, kept, strict=True)], logits


def logits_of(engine: Engine, query: str, documents: list[str]) -> list[float]:
    job = engine.tokenize_score(ScoreTexts(query, documents, MAX_LENGTH))
    return in_order(job, engine.run(job.work))


def in_order(job: Job, results: list[Any]) -> list[float]:
    ordered = sorted(zip(job.work, results, strict=True), key=lambda pair: pair[0].index)
    return [result for _, result in ordered]


def test_token_ids_equal_the_reference(case: Case) -> None:
    job = case.engine.tokenize_score(ScoreTexts(case.query, case.documents, MAX_LENGTH))
    ours = in_order(job, [work.tokens.ids.tolist() for work in job.work])
    assert ours == case.ids
    longest = max(map(len, case.ids))
    assert longest == MAX_LENGTH  # some are truncated
    assert job.truncated.count(True) == sum(len(t) > 0 for t in cut_by_reference(case))


def cut_by_reference(case: Case) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(case.directory)
    return [d for d in case.documents if len(tokenizer(case.query, d).input_ids) > MAX_LENGTH]


def test_batched_logits_equal_transformers(case: Case) -> None:
    ours = torch.tensor(logits_of(case.engine, case.query, case.documents))
    assert case.logits.std() > 0.05  # equal logits would prove nothing
    assert (ours - case.logits).abs().max() <= TOLERANCE


def test_alone_equals_batched_equals_permuted(case: Case) -> None:
    some = case.documents[:100:3]
    batched = logits_of(case.engine, case.query, some)
    alone = [logits_of(case.engine, case.query, [document])[0] for document in some]
    shuffled = list(range(len(some)))
    random.Random(3).shuffle(shuffled)
    permuted = logits_of(case.engine, case.query, [some[i] for i in shuffled])
    np.testing.assert_allclose(alone, case.logits[:100:3], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(batched, alone, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(permuted, [batched[i] for i in shuffled], atol=TOLERANCE, rtol=0)


def test_requests_mixed_in_one_batch_keep_their_scores(case: Case) -> None:
    jobs = [
        case.engine.tokenize_score(ScoreTexts(q, case.documents[:20], MAX_LENGTH))
        for q in (case.query, "rain", "")
    ]
    works = [work for trio in zip(*(job.work for job in jobs), strict=True) for work in trio]
    results = dict(zip(map(id, works), case.engine.run(works), strict=True))
    for job, query in zip(jobs, (case.query, "rain", ""), strict=True):
        mixed = in_order(job, [results[id(work)] for work in job.work])
        np.testing.assert_allclose(
            mixed, logits_of(case.engine, query, case.documents[:20]), atol=TOLERANCE, rtol=0
        )


def test_scores_equal_sentence_transformers(case: Case) -> None:
    """Compare with `CrossEncoder.predict` as a whole: tokenisation, logits, activation."""
    cut = set(cut_by_reference(case))
    short = [d for d in case.documents if d not in cut]
    model = CrossEncoder(str(case.directory), device="cpu", model_kwargs={"dtype": torch.float32})
    expected = model.predict([(case.query, d) for d in short], show_progress_bar=False)
    from sie_server.serving.activation import activate

    activation = case.engine.spec.head.activation  # type: ignore[union-attr]
    ours = [activate(x, activation) for x in logits_of(case.engine, case.query, short)]
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=0)


def test_bf16_ranks_as_fp32(case: Case) -> None:
    from scipy.stats import kendalltau

    coarse = Engine(case.directory, device=DEVICE, dtype="bfloat16")
    exact = logits_of(case.engine, case.query, case.documents)
    assert kendalltau(logits_of(coarse, case.query, case.documents), exact).statistic >= 0.9


@pytest.mark.parametrize("name", ["torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"])
@pytest.mark.parametrize("place", ["sentence_transformers", "sbert_ce_default_activation_function"])
def test_activation_comes_from_the_checkpoint(tmp_path: Path, name: str, place: str) -> None:
    import json

    directory = make_cross_encoder(tmp_path, "bert", max_length=MAX_LENGTH)
    config = json.loads((directory / "config.json").read_text())
    config[place] = {"activation_fn": name} if place == "sentence_transformers" else name
    (directory / "config.json").write_text(json.dumps(config))
    engine = Engine(directory, device=DEVICE, dtype="float32")
    assert engine.spec.head.activation == name.rsplit(".", 1)[-1].lower()  # type: ignore[union-attr]
    model = CrossEncoder(str(directory), device="cpu")
    assert type(model.activation_fn).__name__.lower() == engine.spec.head.activation  # type: ignore[union-attr]


def test_last_layer_short_cut_changes_nothing(case: Case) -> None:
    """Computing the last layer for the read-out token only gives the values of computing it for all tokens."""
    from sie_server.models.packing import pack

    job = case.engine.tokenize_score(ScoreTexts(case.query, case.documents[:30], MAX_LENGTH))
    batch = pack(
        [work.tokens for work in job.work],
        pad_id=0,
        align=16,
        device=case.engine.device,
        dtype=torch.float32,
    )
    with torch.inference_mode():
        short = case.engine._forward.backbone.forward(batch, "first")
        whole = case.engine._forward.backbone.forward(batch, "all")[batch.first_rows]
    torch.testing.assert_close(short, whole, atol=1e-5, rtol=0)


def test_a_padding_token_inside_a_text_counts_as_the_reference_counts_it(case: Case) -> None:
    """(XLM-)RoBERTa do not count it as a position, so the positions of all later tokens shift."""
    pad = "[PAD]" if "[PAD]" in case.engine._tokenizer._tokenizer.get_vocab() else "<pad>"
    documents = [f"rain {pad} falls over {pad}{pad} the harbour", "rain falls over the harbour", pad]
    ids, logits = reference(case.directory, case.query, documents)
    ours = logits_of(case.engine, case.query, documents)
    np.testing.assert_allclose(ours, logits, atol=TOLERANCE, rtol=0)
    assert ids[0] != ids[1]


def test_the_same_text_twice_is_computed_once_and_ties(case: Case) -> None:
    job = case.engine.tokenize_score(ScoreTexts(case.query, case.documents[5:9] * 3, MAX_LENGTH))
    assert len(job.work) == 4
    run_job(case.engine, job)
    assert job.results[:4] == job.results[4:8] == job.results[8:]
    np.testing.assert_allclose(job.results[:4], case.logits[5:9], atol=TOLERANCE, rtol=0)
