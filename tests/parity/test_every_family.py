"""Token ids and raw fp32 results of every served family equal the reference.

The results do not depend on the order of a batch or on its other texts. Lengths range from one token across the
attention window to the truncation limit. Other files in this folder test the peculiarities of single families.
"""

from __future__ import annotations

import random
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from sie_server.engine.engine import Engine
from sie_server.engine.job import QUERY, Job, ScoreTexts, Sparse
from sie_server.models.layers.attention.choice import choose
from sie_server.verify.references import Answers
from support.checkpoints.cross_encoders import random_text
from support.device import DEVICE
from support.docs.attention import attention_by_architecture
from support.families.every import EVERY, Family
from support.layout import gpu_layout

QUERY_TEXT = "how do stars burn hydrogen"
ON_A_GPU = ", layout of a GPU"
# one family of each kind of attention and of each reader; SIE_TEST_ATTENTION=varlen runs all in the layout of a GPU
VARLEN = (
    "ColBERT, LFM2",
    "ColBERT, ModernBERT",
    "ColBERT, Stanford",
    "SPLADE",
    "bge-m3, dense",
    "decoder qwen3",
    "embedder",
    "ettin",
    "xlm-roberta",
)


@dataclass
class Case:
    """One family's checkpoint, documents, and the reference results for them."""

    family: Family
    engine: Engine
    documents: list[str]
    theirs: Answers


def lengths(family: Family) -> list[int]:
    """Return word counts: 0, 1, both sides of these checkpoints' windows (16, 48), and beyond the limit.

    Prompted families stay below the limit: no library defines how to truncate a filled template, so their own files
    test it.
    """
    most = family.limit + 20 if family.limit < 1024 else 150
    return [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 47, 48, 49, *range(50, most, max(11, most // 16))]


@pytest.fixture(scope="module", params=[*sorted(EVERY), *(f"{name}{ON_A_GPU}" for name in VARLEN)])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name = request.param.removesuffix(ON_A_GPU)
    family = EVERY[name]
    made = family.make(tmp_path_factory.mktemp("family"))
    with gpu_layout() if name != request.param else nullcontext():
        engine = Engine(
            made.served, device=DEVICE, dtype="float32", template=made.template, max_seq_length=family.limit
        )
    if name != request.param:
        assert engine._forward.attention.kind == "varlen"
    rng = random.Random(5)
    documents = [random_text(rng, n) for n in lengths(family)]
    with torch.inference_mode():
        return Case(family, engine, documents, made.ask(engine)(QUERY_TEXT, documents))


def answers(case: Case, documents: list[str], at_once: bool = True) -> list[Any]:
    """Return one score, or one array of vectors, per document."""
    engine, limit = case.engine, case.family.limit
    if "score" in engine.spec.outputs and not _by_vectors(case):
        job = engine.tokenize_score(ScoreTexts(QUERY_TEXT, documents, limit))
    else:
        name = "dense" if "dense" in engine.spec.outputs else engine.spec.outputs[-1]
        job = engine.tokenize_encode(documents, (name,), limit)
    for works in [job.work] if at_once else [[work] for work in job.work]:
        for work, result in zip(works, engine.run(works), strict=True):
            if work.index != QUERY:
                job.put(work.index, result)
    return [_array(result, engine.spec.backbone.vocab_size) for result in job.results]


def _by_vectors(case: Case) -> bool:
    """Return whether the reference has no scores of its own, so that vectors are compared."""
    return bool(case.theirs.vectors) and "MaxSim" not in case.theirs.compared


def _array(result: Any, vocabulary: int) -> Any:
    if not isinstance(result, dict):
        return result
    [values] = result.values()
    if isinstance(values, Sparse):
        whole = np.zeros(vocabulary, np.float32)
        whole[values.indices] = values.values
        return whole
    return values


def expected(case: Case) -> list[Any]:
    return [v.numpy() for v in case.theirs.vectors[1:]] if _by_vectors(case) else case.theirs.scores


def distance(ours: list[Any], theirs: list[Any]) -> float:
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(ours, theirs, strict=True))


def ids_of(job: Job) -> list[list[int]]:
    prefix = job.prefix.ids.tolist() if job.prefix else []
    found = {
        index: prefix + work.tokens.ids.tolist()
        for work in job.work
        for index in (work.index, *job.copies.get(work.index, ()))
    }
    return [found[i] for i in range(len(job.results))]


def test_the_page_names_the_attention(case: Case) -> None:
    """docs/attention.md has a row for the architecture, with the attention that a GPU and a CPU are given."""
    architecture, needs = case.engine.spec.architecture, case.engine.spec.backbone.attention
    wide = replace(needs, head_dim=64)  # the tests' heads are narrower than those of published models
    found = [
        choose(wide, torch.device(kind), torch.bfloat16, capability=(9, 0)).kind for kind in ("cuda", "cpu")
    ]
    page = attention_by_architecture()
    assert page.get(architecture, page["all others"]) == tuple(found)


def test_token_ids_equal_the_reference(case: Case) -> None:
    if "score" in case.engine.spec.outputs and not _by_vectors(case):
        job = case.engine.tokenize_score(ScoreTexts(QUERY_TEXT, case.documents, case.family.limit))
    else:
        job = case.engine.tokenize_encode(case.documents, ("dense",), case.family.limit)
    assert ids_of(job) == case.theirs.ids
    assert any(job.truncated) == (case.family.limit < 1024)


def test_batched_results_equal_the_reference(case: Case) -> None:
    theirs = expected(case)
    assert np.std([np.asarray(one).ravel()[0] for one in theirs]) > 0.01  # equal results would prove nothing
    found = distance(answers(case, case.documents), theirs)
    print(f"max |Δ| {found:.1e}")
    assert found <= case.family.tolerance


def test_alone_equals_batched_equals_permuted(case: Case) -> None:
    batched = answers(case, case.documents)
    assert distance(answers(case, case.documents, at_once=False), batched) <= case.family.tolerance
    places = list(range(len(case.documents)))
    random.Random(3).shuffle(places)
    permuted = answers(case, [case.documents[i] for i in places])
    assert distance(permuted, [batched[i] for i in places]) <= case.family.tolerance
