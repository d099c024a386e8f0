"""ColBERT checkpoints: ids, token vectors and scores equal a plain reference, and sentence-transformers' own reader.

The plain reference follows PyLate 1.6's `ColBERT.tokenize` and `encode` on transformers. PyLate itself cannot be
installed together with transformers 5.23; `test_colbert_golden.py` compares with its recorded results.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import MultiVectorEncoder
from tokenizers import normalizers
from transformers import AutoTokenizer, JinaEmbeddingsV3Model

from sie_server.engine.engine import Engine
from sie_server.engine.job import Chunking, Job, ScoreTexts
from sie_server.models.spec import LateInteractionSpec
from support.checkpoints.colbert import BASES, make_jina, make_pylate, make_stanford
from support.checkpoints.cross_encoders import random_text
from support.device import DEVICE

TOLERANCE = 1e-4
Vectors = list[npt.NDArray[np.float32]]
STANFORD = {
    "query_token_id": "[unused0]",
    "doc_token_id": "[unused1]",
    "query_maxlen": 20,
    "doc_maxlen": 50,
    "dim": 24,
    "mask_punctuation": True,
    "attend_to_mask_tokens": False,
}
# name → layout, family, settings, and the expected spec: query limit, document limit, expanded, attended, skipping
CASES: dict[str, tuple[str, str, Any, tuple[int, int, bool, bool, bool]]] = {
    "pylate": ("pylate", "bert", {}, (16, 60, True, False, True)),
    "pylate-attend": ("pylate", "bert", {"attend_to_expansion_tokens": True}, (16, 60, True, True, True)),
    "pylate-plain": (
        "pylate",
        "bert",
        {"do_query_expansion": False, "attend_to_expansion_tokens": True, "skiplist_words": []},
        (16, 60, False, False, False),
    ),
    "pylate-two-layers": ("pylate", "bert", {"dims": (40, 24)}, (16, 60, True, False, True)),
    "pylate-xlmr": ("pylate", "xlm-roberta", {"skiplist_words": None}, (16, 60, True, False, True)),
    "pylate-modernbert": ("pylate", "modernbert", {}, (16, 60, True, False, True)),
    "pylate-modernbert-attend": (
        "pylate",
        "modernbert",
        {"attend_to_expansion_tokens": True},
        (16, 60, True, True, True),
    ),
    "pylate-defaults": (
        "pylate",
        "bert",
        {"query_prefix": None, "document_prefix": None, "query_length": None, "document_length": None},
        (32, 96, True, False, True),  # PyLate's default of 180, limited by the model's positions
    ),
    "stanford": ("stanford", "bert", STANFORD, (20, 50, True, False, True)),
    "stanford-attend": (
        "stanford",
        "bert",
        STANFORD | {"attend_to_mask_tokens": True, "mask_punctuation": False},
        (20, 50, True, True, False),
    ),
    "pylate-edge": (  # as mxbai-edge-colbert: lower-cased, no query expansion, a wider layer between
        "pylate",
        "modernbert",
        {"dims": (64, 24), "lower_case": True, "do_query_expansion": False},
        (16, 60, False, False, True),
    ),
    "pylate-activation": (
        "pylate",
        "bert",
        {"dims": (40, 24), "activation": "activation.SiLU"},
        (16, 60, True, False, True),
    ),
    "pylate-lfm2": ("pylate", "lfm2", {}, (16, 60, True, False, True)),
    "pylate-lfm2-attend": (
        "pylate",
        "lfm2",
        {"attend_to_expansion_tokens": True},
        (16, 60, True, True, True),
    ),
    "jina": (
        "jina",
        "xlm-roberta",
        STANFORD
        | {
            "query_token_id": "[QueryMarker]",
            "doc_token_id": "[DocumentMarker]",
            "attend_to_mask_tokens": True,
        },
        (20, 50, True, True, True),
    ),
    "stanford-xlmr": ("stanford", "xlm-roberta", STANFORD, (20, 50, True, False, True)),
    "stanford-defaults": ("stanford", "bert", None, (32, 96, True, False, True)),
}


@dataclass
class Case:
    """A checkpoint and texts of all lengths."""

    name: str
    directory: Path
    engine: Engine
    spec: LateInteractionSpec
    queries: list[str]
    documents: list[str]

    @property
    def limit(self) -> int:
        return self.engine.max_seq_length


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    layout, family, settings, _ = CASES[request.param]
    directory = tmp_path_factory.mktemp("colbert") / request.param
    if layout == "pylate":
        make_pylate(directory, family, **settings)
    elif layout == "jina":
        make_jina(directory, settings)
    else:
        make_stanford(directory, family, settings)
    engine = Engine(directory, device=DEVICE, dtype="float32")
    rng = random.Random(4)
    queries = ["", "rain", "  rain falls - 3.14  "] + [random_text(rng, n) for n in (3, 6, 9, 40)]
    # empty to far beyond the limit, with punctuation
    documents = ["", "?", "- - -"] + [random_text(rng, n) for n in (1, 2, 5, 13, 17, 30, 60, 90)]
    documents += [random_text(rng, rng.randint(1, 40)) + " E-Mail - X." for _ in range(20)]
    assert isinstance(engine.spec.head, LateInteractionSpec)
    yield Case(request.param, directory, engine, engine.spec.head, queries, documents)


class Reference:
    """The plain reference: one text at a time through transformers, padded as in PyLate."""

    def __init__(self, case: Case) -> None:
        self.spec, self.limit = case.spec, case.limit
        self.tokenizer = AutoTokenizer.from_pretrained(case.directory)
        weights = load_file(case.directory / "model.safetensors")
        if (CASES[case.name][2] or {}).get("lower_case"):
            backend = self.tokenizer.backend_tokenizer
            backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), backend.normalizer])
        layout, family = CASES[case.name][:2]
        kind: Any = JinaEmbeddingsV3Model if layout == "jina" else BASES[family]
        own_config = case.directory / "library" if layout == "jina" else case.directory
        model = kind(kind.config_class.from_pretrained(own_config)).eval()
        prefix = f"{model.base_model_prefix}."
        own = {k.removeprefix(prefix): v for k, v in weights.items() if k != "linear.weight"}
        if layout == "jina":  # transformers converts the published names while it loads
            self.model: Any = kind.from_pretrained(own_config).eval()
        else:
            model.load_state_dict(own, strict=True)
            self.model = model
        dense = [load_file(p) for p in sorted(case.directory.glob("*_Dense/model.safetensors"))]
        self.activated = case.name == "pylate-activation"
        self.dense = dense or [{"linear.weight": weights["linear.weight"]}]

    def read(self, text: str, *, is_query: bool) -> tuple[list[int], npt.NDArray[np.float32]]:
        """Return token ids and normalised token vectors of one text."""
        length = self.spec.query_length if is_query else self.limit
        marker = self.spec.query_marker if is_query else self.spec.document_marker
        ids = self.tokenizer(text.strip(), truncation=True, max_length=length - 1).input_ids
        ids = [ids[0], self.tokenizer.convert_tokens_to_ids(marker), *ids[1:]]
        mask = [1] * len(ids)
        if is_query and self.spec.expand_to:
            mask += [int(self.spec.attend_to_expansion)] * (length - len(ids))
            filler = self.tokenizer.mask_token_id or self.tokenizer.eos_token_id
            ids += [filler] * (length - len(ids))
        return ids, self.vectors(ids, mask, skip=not is_query)

    def vectors(self, ids: list[int], mask: list[int], *, skip: bool) -> npt.NDArray[np.float32]:
        """Return normalised token vectors; `skip` omits tokens of the skip list."""
        with torch.inference_mode():
            x = self.model(torch.tensor([ids]), attention_mask=torch.tensor([mask])).last_hidden_state[0]
            for layer in self.dense:
                y = x @ layer["linear.weight"].T + layer.get("linear.bias", torch.zeros(1))
                y = torch.nn.functional.silu(y) if self.activated and layer is self.dense[0] else y
                x = y + x @ layer["residual.weight"].T if "residual.weight" in layer else y
        skipped = {self.tokenizer.vocab.get(word) for word in self.spec.skip_words} if skip else set()
        kept = [i for i, number in enumerate(ids) if number not in skipped]
        return torch.nn.functional.normalize(x[kept], dim=-1).numpy()

    def windows(self, text: str, limit: int, overlap: int) -> Iterator[tuple[npt.NDArray[np.float32], str]]:
        """Return token vectors and character span of each window of a document."""
        backend, stripped = self.tokenizer.backend_tokenizer, text.strip()
        first, *last = self.tokenizer("").input_ids
        marker = self.tokenizer.convert_tokens_to_ids(self.spec.document_marker)
        whole, room = backend.encode(stripped, add_special_tokens=False), limit - 2 - len(last)
        for start in range(0, max(1, len(whole.ids) - overlap), room - overlap):
            ids = [first, marker, *whole.ids[start : start + room], *last]
            offsets = whole.offsets[start : start + room] or [(0, 0)]
            vectors = self.vectors(ids, [1] * len(ids), skip=True)
            yield vectors, stripped[offsets[0][0] : offsets[-1][1]].strip()


def encoded(engine: Engine, texts: list[str], limit: int, *, is_query: bool) -> Vectors:
    job = engine.tokenize_encode(texts, ("multivector",), limit, is_query=is_query)
    for work, result in zip(job.work, engine.run(job.work), strict=True):
        job.put(work.index, result["multivector"])
    return job.results


def scored(engine: Engine, job: Job) -> list[float]:
    if job.work:
        for work, result in zip(job.work, engine.run(job.work), strict=True):
            if work.index >= 0:
                job.put(work.index, result)
    if job.known:
        engine.score_known(job)
    return job.results


def assert_same(ours: Vectors, expected: Vectors) -> None:
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, atol=TOLERANCE, rtol=0)


def test_settings_are_the_checkpoints(case: Case) -> None:
    query, document, expanded, attended, skips = CASES[case.name][3]
    spec = case.spec
    assert (spec.query_length, case.limit) == (query, document)
    assert (bool(spec.expand_to), spec.attend_to_expansion) == (expanded, attended)
    assert spec.skip_words == (tuple(string.punctuation) if skips else ())
    markers = {"stanford": ["[unused0]", "[unused1]"], "jina": ["[QueryMarker]", "[DocumentMarker]"]}
    expected = markers.get(CASES[case.name][0], ["[Q] ", "[D] "])
    assert [spec.query_marker, spec.document_marker] == expected
    assert case.engine.spec.outputs == ["score", "multivector"]
    assert case.engine.spec.dims == {"multivector": 128 if case.name == "stanford-defaults" else 24}


@pytest.mark.parametrize("is_query", [True, False])
def test_ids_and_vectors_equal_the_reference(case: Case, is_query: bool) -> None:
    reference = Reference(case)
    texts = case.queries if is_query else case.documents
    expected = [reference.read(text, is_query=is_query) for text in texts]
    job = case.engine.tokenize_encode(texts, ("multivector",), case.limit, is_query=is_query)
    ids = {work.index: work.tokens.ids.tolist() for work in job.work}
    assert [ids[i] for i in range(len(texts))] == [row for row, _ in expected]
    assert any(job.truncated)
    assert not all(job.truncated)
    ours = encoded(case.engine, texts, case.limit, is_query=is_query)
    assert_same(ours, [vectors for _, vectors in expected])


def test_vectors_equal_sentence_transformers(case: Case) -> None:
    """`MultiVectorEncoder` reads both layouts."""
    if case.name == "pylate-defaults":
        pytest.skip("it takes an absent marker for none, PyLate for its own")
    if case.name == "jina":
        pytest.skip("it would run the repository's own code")
    model = MultiVectorEncoder(str(case.directory), device="cpu")
    for is_query, texts, encode in (
        (True, case.queries, model.encode_query),
        (False, case.documents, model.encode_document),
    ):
        # PyLate strips texts; this changes only the ids of byte-level vocabularies
        stripped = [text.strip() for text in texts]
        expected = encode(stripped, convert_to_numpy=True, show_progress_bar=False)
        assert_same(encoded(case.engine, texts, case.limit, is_query=is_query), list(expected))


def test_scores_are_the_sum_of_best_matches(case: Case) -> None:
    reference = Reference(case)
    documents = [reference.read(text, is_query=False)[1] for text in case.documents]
    for query in case.queries:
        vectors = reference.read(query, is_query=True)[1]
        expected = [float((vectors @ d.T).max(1).sum()) for d in documents]
        ours = scored(case.engine, case.engine.tokenize_score(ScoreTexts(query, case.documents, case.limit)))
        np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=0)
        assert len(set(np.round(ours, 3))) > 5


def test_every_window_of_a_long_document_scores_as_the_reference(case: Case) -> None:
    reference, engine, query = Reference(case), case.engine, case.queries[4]
    documents = [
        "",
        " ",
        "  rain falls\n",
        *(f"\n  {text} \t" for text in case.documents[-8:]),
        "Rain - " * 70,
    ]
    job = engine.tokenize_score(ScoreTexts(query, documents, 30, chunking=Chunking(5, 100)))
    results, vectors = scored(engine, job), reference.read(query, is_query=True)[1]
    assert job.chunks is not None
    for number, text in enumerate(documents):
        ours = [(c, r) for c, r in zip(job.chunks, results, strict=True) if c.document == number]
        expected = list(reference.windows(text, 30, 5))
        assert [text[c.start : c.end] for c, _ in ours] == [piece for _, piece in expected]
        by_hand = [float((vectors @ d.T).max(1).sum()) for d, _ in expected]
        np.testing.assert_allclose([r for _, r in ours], by_hand, atol=TOLERANCE, rtol=0)
    assert max(chunk.count for chunk in job.chunks) > 4


def test_alone_equals_batched_permuted_and_mixed(case: Case) -> None:
    query, documents, engine = case.queries[4], case.documents, case.engine
    batched = scored(engine, engine.tokenize_score(ScoreTexts(query, documents, case.limit)))
    alone = [scored(engine, engine.tokenize_score(ScoreTexts(query, [d], case.limit)))[0] for d in documents]
    np.testing.assert_allclose(alone, batched, atol=1e-5, rtol=0)
    order = random.Random(1).sample(range(len(documents)), len(documents))
    permuted = scored(
        engine, engine.tokenize_score(ScoreTexts(query, [documents[i] for i in order], case.limit))
    )
    np.testing.assert_allclose(permuted, [batched[i] for i in order], atol=1e-5, rtol=0)
    jobs = [engine.tokenize_score(ScoreTexts(q, documents, case.limit)) for q in (query, "stars", "")]
    works = [work for trio in zip(*(job.work for job in jobs), strict=True) for work in trio]
    for work, result in zip(works, engine.run(works), strict=True):
        if work.index >= 0:
            work.job.put(work.index, result)
    np.testing.assert_allclose(jobs[0].results, batched, atol=1e-5, rtol=0)
    other = scored(engine, engine.tokenize_score(ScoreTexts("", documents, case.limit)))
    np.testing.assert_allclose(jobs[2].results, other, atol=1e-5, rtol=0)


def test_given_vectors_score_as_their_texts(case: Case) -> None:
    engine, query, documents = case.engine, case.queries[3], case.documents
    expected = scored(engine, engine.tokenize_score(ScoreTexts(query, documents, case.limit)))
    [query_vectors] = encoded(engine, [query], case.limit, is_query=True)
    vectors = encoded(engine, documents, case.limit, is_query=False)
    for q, d in ((query_vectors, vectors), (query, vectors), (query_vectors, documents)):
        ours = scored(engine, engine.tokenize_vectors(q, d, case.limit))
        np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)


def test_a_longer_limit_moves_only_documents(case: Case) -> None:
    longest = case.documents[10]
    job = case.engine.tokenize_score(ScoreTexts(case.queries[-1], [longest], 90))
    lengths = {work.index: len(work.tokens) for work in job.work}
    assert lengths == {-1: case.spec.query_length, 0: 90}
    assert job.query_truncated
    assert job.truncated == [True]


def test_bf16_ranks_as_fp32(case: Case) -> None:
    from scipy.stats import kendalltau

    coarse = Engine(case.directory, device=DEVICE, dtype="bfloat16")
    job, exact = (
        e.tokenize_score(ScoreTexts(case.queries[4], case.documents, case.limit))
        for e in (coarse, case.engine)
    )
    assert kendalltau(scored(coarse, job), scored(case.engine, exact)).statistic >= 0.8


def test_non_finite_values_of_one_text_do_not_spread(tmp_path: Path) -> None:
    """LFM2's convolution reads rows before a text's first. These belong to another text and must count as 0."""
    engine = Engine(make_pylate(tmp_path / "model", "lfm2"), device=DEVICE, dtype="float32")
    bad, good = (
        engine.tokenize_encode([text], ("multivector",), 64)
        for text in ("rain falls tomorrow harbour", "stars burn hydrogen")
    )
    [alone] = engine.run(good.work)
    broken = set(bad.work[0].tokens.ids.tolist()) - set(good.work[0].tokens.ids.tolist())
    engine._forward.backbone.words[list(broken)] = float("inf")  # type: ignore[union-attr]
    first, second = engine.run([*bad.work, *good.work])
    assert not np.isfinite(first["multivector"]).all()
    np.testing.assert_allclose(second["multivector"], alone["multivector"], atol=1e-5, rtol=0)
