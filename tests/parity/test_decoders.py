"""Causal rerankers: raw fp32 logits equal those of transformers with the template code of each model card."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sie_server.engine import forward
from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts
from sie_server.models.batch import PackedBatch
from sie_server.models.families.decoders import gemma2
from support.checkpoints.decoders import DECODERS, make_decoder
from support.device import DEVICE
from support.families.decoder_cases import LIMIT, TOLERANCE, Case, ids_of, in_order, make_case
from support.layout import gpu_layout


@pytest.fixture(scope="module", params=sorted(DECODERS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp(request.param), request.param)


def logits_of(
    engine: Engine, query: str, documents: list[str], instruction: str | None = None
) -> list[float]:
    job = engine.tokenize_score(ScoreTexts(query, documents, LIMIT, instruction))
    return in_order(job, engine.run(job.work))


@pytest.mark.parametrize("query", ["how do stars burn hydrogen?", "", "rain\n", "{document} and {query}"])
def test_token_ids_equal_the_reference(case: Case, query: str) -> None:
    job = case.engine.tokenize_score(ScoreTexts(query, case.documents, LIMIT))
    seen_cut = 0
    for ids, document, cut in zip(ids_of(job), case.documents, job.truncated, strict=True):
        assert len(ids) <= LIMIT
        if case.comparable(document):
            assert ids == case.reference_ids(query, document)
        seen_cut += cut
    assert 1 <= seen_cut < len(case.documents)
    assert job.input_tokens == sum(map(len, ids_of(job)))


def test_logits_equal_transformers(case: Case) -> None:
    job = case.engine.tokenize_score(ScoreTexts(case.query, case.documents, LIMIT))
    expected = np.array([case.reference(ids) for ids in ids_of(job)])
    ours = np.array(in_order(job, case.engine.run(job.work)))
    assert expected.std() > 0.05  # equal logits would prove nothing
    print(case.template, "max |Δ|", np.abs(ours - expected).max(), "std", expected.std())
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=0)


def test_alone_equals_batched_equals_permuted(case: Case) -> None:
    some = case.documents[::2]
    batched = logits_of(case.engine, case.query, some)
    alone = [logits_of(case.engine, case.query, [document])[0] for document in some]
    shuffled = list(range(len(some)))
    random.Random(3).shuffle(shuffled)
    permuted = logits_of(case.engine, case.query, [some[i] for i in shuffled])
    np.testing.assert_allclose(batched, alone, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(permuted, [batched[i] for i in shuffled], atol=TOLERANCE, rtol=0)


def test_sharing_the_prefix_changes_no_score(case: Case) -> None:
    apart = Engine(case.directory, device=DEVICE, dtype="float32", template=case.template, share_prefix=False)
    shared = case.engine.tokenize_score(ScoreTexts(case.query, case.documents, LIMIT))
    whole = apart.tokenize_score(ScoreTexts(case.query, case.documents, LIMIT))
    assert ids_of(shared) == ids_of(whole)
    assert whole.prefix is None
    np.testing.assert_allclose(
        logits_of(case.engine, case.query, case.documents),
        logits_of(apart, case.query, case.documents),
        atol=1e-4,
        rtol=0,
    )
    some = case.documents[:20]
    shared, whole = (
        engine.tokenize_score(ScoreTexts(case.query, some, LIMIT)) for engine in (case.engine, apart)
    )
    assert shared.prefix is not None
    assert shared.tokens < whole.tokens == shared.input_tokens == whole.input_tokens


def test_requests_mixed_over_several_batches_keep_their_scores(case: Case) -> None:
    """Batches interleave the works of three requests and split each request; its prefix is kept between batches."""
    queries = [case.query, "rain", ""]
    jobs = [case.engine.tokenize_score(ScoreTexts(q, case.documents[:20], LIMIT)) for q in queries]
    works = [work for trio in zip(*(job.work for job in jobs), strict=True) for work in trio]
    kept = None
    for start in range(0, len(works), 7):
        part = works[start : start + 7]
        for work, result in zip(part, case.engine.run(part), strict=True):
            work.job.put(work.index, result)
        first = jobs[0].prefix
        assert first is not None and len(first.layers) == 3
        assert kept is None or first.layers is kept  # computed once
        kept = first.layers
    for job, query in zip(jobs, queries, strict=True):
        np.testing.assert_allclose(
            job.results, logits_of(case.engine, query, case.documents[:20]), atol=TOLERANCE, rtol=0
        )


def test_a_request_cancelled_during_a_pass_does_not_affect_others(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job releases the shared prefix; the pass, which also serves other requests, still completes with it."""
    stays, leaves = (
        case.engine.tokenize_score(ScoreTexts(q, case.documents[:9], LIMIT)) for q in (case.query, "rain")
    )
    assert stays.prefix and leaves.prefix
    passes, pack = [], case.engine._forward._pack

    def then_leave(*args: Any, **named: Any) -> PackedBatch:
        batch = pack(*args, **named)
        passes.append(leaves.release())
        return batch

    monkeypatch.setattr(case.engine._forward, "_pack", then_leave)
    results = case.engine.run([*stays.work, *leaves.work])
    monkeypatch.undo()
    expected = logits_of(case.engine, case.query, case.documents[:9])
    np.testing.assert_allclose(in_order(stays, results[: len(stays.work)]), expected, atol=TOLERANCE, rtol=0)
    assert passes and leaves.prefix and not leaves.prefix.layers and len(leaves.prefix)


@pytest.mark.parametrize("rows", [0, 300, 10**6])
def test_in_the_layout_of_a_gpu_a_prefix_is_part_of_the_batch(
    case: Case, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """It is computed in the first pass and kept only for later ones, of which a bound of key rows makes more."""
    if case.template == "bge-reranker-gemma" and case.engine.spec.backbone.attention.dense:
        return  # a cap on attention logits: dense blocks on every device
    with gpu_layout():
        engine = Engine(case.directory, device=DEVICE, dtype="float32", template=case.template)
    monkeypatch.setattr(forward, "KEY_ROWS", rows)
    monkeypatch.setattr(forward, "compute_prefixes", None)
    job = engine.tokenize_score(ScoreTexts(case.query, case.documents[:12], LIMIT))
    passes, launch = [], engine._forward._launch
    monkeypatch.setattr(engine._forward, "_launch", lambda works: passes.append(len(works)) or launch(works))
    ours = in_order(job, engine.run(job.work))
    monkeypatch.undo()
    expected = logits_of(case.engine, case.query, case.documents[:12])
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=0)
    assert sum(passes) == len(job.work) and (len(passes) == 1) == (rows == 10**6)
    assert rows or passes == [1] * len(job.work)
    assert job.prefix and bool(job.prefix.layers) == (len(passes) > 1)


def test_an_instruction_changes_scores_if_the_model_takes_one(case: Case) -> None:
    if not case.engine.spec.takes_instruction:
        assert case.template == "bge-reranker-gemma"
        return
    told = "prefer short passages"
    job = case.engine.tokenize_score(ScoreTexts(case.query, case.documents[:12], LIMIT, told))
    expected = [case.reference_ids(case.query, d, told) for d in case.documents[:12]]
    assert ids_of(job) == expected
    ours = in_order(job, case.engine.run(job.work))
    np.testing.assert_allclose(ours, [case.reference(ids) for ids in expected], atol=TOLERANCE, rtol=0)
    assert not np.allclose(ours, logits_of(case.engine, case.query, case.documents[:12]), atol=0.01)


def test_bf16_ranks_as_fp32(case: Case) -> None:
    from scipy.stats import kendalltau

    coarse = Engine(case.directory, device=DEVICE, dtype="bfloat16", template=case.template)
    exact = logits_of(case.engine, case.query, case.documents)
    assert kendalltau(logits_of(coarse, case.query, case.documents), exact).statistic >= 0.85


def test_last_layer_short_cut_changes_nothing(case: Case) -> None:
    """Computing the last layer for the read-out token only gives the values of computing it for all tokens."""
    job = case.engine.tokenize_score(ScoreTexts(case.query, case.documents[:9], LIMIT))
    case.engine.run(job.work)  # computes the prefix
    batch = case.engine._forward._pack([work.tokens for work in job.work], [None] * len(job.work))
    with torch.inference_mode():
        whole = case.engine._forward.backbone.forward(batch, "all")
        short = case.engine._forward.backbone.forward(batch, "last")
        first = case.engine._forward.backbone.forward(batch, "first")
    torch.testing.assert_close(short, whole[batch.last_rows], atol=1e-4, rtol=0)
    torch.testing.assert_close(first, whole[batch.first_rows], atol=1e-4, rtol=0)


@pytest.mark.parametrize("one_row", [False, True])
def test_capped_attention_in_blocks_of_rows(one_row: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a plain causal and with an additive mask, the number of rows in a block does not change the result."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 11, 8) for heads in (4, 2, 2))
    q = q[:, :, -1:] if one_row else q
    mask = torch.zeros(2, 1, 1, 11) if one_row else torch.full((1, 1, 11, 11), float("-inf")).triu(1)
    mask[..., 0] = float("-inf") if one_row else 0.0
    attend = gemma2.CappedAttention(0.7, 1.5)
    logits = 1.5 * torch.tanh(q @ k.repeat_interleave(2, 1).mT * 0.7 / 1.5) + mask
    expected = logits.softmax(-1) @ v.repeat_interleave(2, 1)
    for most in (1, 400, 2**26):
        monkeypatch.setattr(gemma2, "LOGITS", most)
        ours = [attend(q, k, v, attn_mask=mask, is_causal=False, enable_gqa=True)]
        if not one_row:
            ours.append(attend(q, k, v, attn_mask=None, is_causal=True, enable_gqa=True))
        for value in ours:
            torch.testing.assert_close(value, expected)


def test_gemma2_reads_no_more_than_its_window(tmp_path: Path) -> None:
    directory = make_decoder(tmp_path, "gemma2", sliding_window=96)
    engine = Engine(directory, device=DEVICE, dtype="float32", template="bge-reranker-gemma")
    assert engine.spec.backbone.max_length == engine.max_seq_length == 96
