"""Multi-vector encoders saved by sentence-transformers 6 give the results of its `MultiVectorEncoder`."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sentence_transformers import MultiVectorEncoder
from tokenizers import Tokenizer

from sie_server.engine.engine import Engine
from sie_server.engine.job import Chunking, ScoreTexts
from sie_server.errors import ModelLoadFailed
from sie_server.models.spec import LateInteractionSpec
from support.checkpoints.colbert import make_pylate, make_stanford
from support.checkpoints.cross_encoders import random_text
from support.device import DEVICE

Vectors = list[npt.NDArray[np.float32]]
MARKED = {"query": "[Q] ", "document": "[D] "}
SPOKEN = {"query": "search query: ", "document": "rain "}


@dataclass(frozen=True)
class Saved:
    """Changes to a model before the library saves it."""

    family: str
    expansion: dict[str, Any] | None
    prompts: dict[str, str]
    make: dict[str, Any]
    query_length: int | None = None
    document_length: int | None = 60


FIXED = {"strategy": "fixed", "length": 16, "attend": False}
CASES = {
    "fixed": Saved("bert", FIXED, MARKED, {}),
    "fixed-attend-token": Saved("bert", FIXED | {"attend": True, "token": "rain"}, MARKED, {}),
    "min": Saved("bert", FIXED | {"strategy": "min"}, MARKED, {}),
    "min-capped": Saved("modernbert", FIXED | {"strategy": "min"}, MARKED, {}, query_length=24),
    "plain": Saved("modernbert", None, MARKED, {"lower_case": True}, query_length=20),
    "unlimited": Saved("bert", None, {}, {}, document_length=None),
    "spoken": Saved("xlm-roberta", FIXED, SPOKEN, {}),
    "spoken-modernbert": Saved("modernbert", None, SPOKEN, {"skiplist_words": []}),
    "layers": Saved("modernbert", FIXED, MARKED, {"dims": (64, 24), "activation": "activation.GELU"}),
    "no-dense": Saved("bert", FIXED, MARKED, {"dims": ()}),
}


@dataclass
class Case:
    directory: Path
    reference: MultiVectorEncoder
    engine: Engine
    spec: LateInteractionSpec

    def encode(self, texts: list[str], *, is_query: bool) -> Vectors:
        limit = self.engine.max_seq_length
        job = self.engine.tokenize_encode(texts, ("multivector",), limit, is_query=is_query)
        for work, result in zip(job.work, self.engine.run(job.work), strict=True):
            job.put(work.index, result["multivector"])
        return job.results


def save(root: Path, saved: Saved) -> Path:
    """Save a checkpoint in PyLate's layout with sentence-transformers."""
    source = make_pylate(root / "pylate", saved.family, **saved.make)
    model = MultiVectorEncoder(str(source), device="cpu")
    first: Any = model[0]
    first.query_expansion, first.document_length = saved.expansion, saved.document_length
    first.query_length = saved.query_length
    model.prompts = dict(saved.prompts)
    model.save_pretrained(str(root / "saved"))
    return root / "saved"


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    directory = save(tmp_path_factory.mktemp("multi"), CASES[request.param])
    engine = Engine(directory, device=DEVICE, dtype="float32")
    assert isinstance(engine.spec.head, LateInteractionSpec)
    yield Case(directory, MultiVectorEncoder(str(directory), device="cpu"), engine, engine.spec.head)


def texts(seed: int, longest: int) -> list[str]:
    rng = random.Random(seed)
    lengths = [1, 2, 3, 6, 9, 17, longest]
    some = ["", "  rain falls - 3.14  ", "?", "[D] x [MASK]", *(random_text(rng, n) for n in lengths)]
    return [*some, *(random_text(rng, rng.randint(1, 30)) + " E-Mail - X." for _ in range(9))]


@pytest.mark.parametrize("is_query", [True, False])
def test_vectors_equal_the_library(case: Case, is_query: bool) -> None:
    encode = case.reference.encode_query if is_query else case.reference.encode_document
    given = texts(1, 90)
    expected: Any = encode(given, convert_to_numpy=True, show_progress_bar=False)
    alone = encode(given[:4], batch_size=1, convert_to_numpy=True, show_progress_bar=False)
    ours = case.encode(given, is_query=is_query)
    for mine, theirs in zip([*ours, *ours[:4]], [*expected, *alone], strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, atol=1e-4, rtol=0)


def test_scores_equal_the_library(case: Case) -> None:
    queries, documents = texts(2, 40)[:8], texts(3, 90)
    for query in queries:
        q = case.reference.encode_query(query, show_progress_bar=False)
        ds = case.reference.encode_document(documents, show_progress_bar=False)
        # one pair at a time, because batches of documents are padded
        expected = [float(case.reference.similarity([q], [d])) for d in ds]
        job = case.engine.tokenize_score(ScoreTexts(query, documents, case.engine.max_seq_length))
        for work, result in zip(job.work, case.engine.run(job.work), strict=True):
            if work.index >= 0:
                job.put(work.index, result)
        np.testing.assert_allclose(job.results, expected, atol=1e-4, rtol=0)


def test_windows_are_the_documents_tokens_after_the_prompt(case: Case) -> None:
    prompt = case.spec.document_prompt
    tokenizer = Tokenizer.from_str(case.reference.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    documents = ["", "  rain", " " + random_text(random.Random(7), 80) + " \n", "naïve café " * 20]
    job = case.engine.tokenize_plain(ScoreTexts("rain", documents, 30, chunking=Chunking(0, 100)))
    sequences = {i: w.tokens.ids.tolist() for w in job.work for i in (w.index, *job.copies.get(w.index, ()))}
    assert job.chunks is not None
    for number, text in enumerate(documents):
        encoding = tokenizer.encode(prompt + text)
        whole = encoding.ids
        before = 1 + sum(0 < end <= len(prompt) for _, end in encoding.offsets)
        windows = [(c, sequences[i]) for i, c in enumerate(job.chunks) if c.document == number]
        assert all(ids[:before] == whole[:before] and ids[-1] == whole[-1] for _, ids in windows)
        assert [t for _, ids in windows for t in ids[before:-1]] == whole[before:-1]
        chunks = [chunk for chunk, _ in windows]
        stripped = text.strip()
        assert text[chunks[0].start : chunks[-1].end] == stripped
        # only space lies between two windows; they share a letter if a token is only a word-start marker
        gaps = [text[one.end : two.start] for one, two in pairwise(chunks)]
        assert not any(gap.strip() for gap in gaps)
        assert all(
            0 <= one.end - two.start <= 1 or gap
            for one, two, gap in zip(chunks, chunks[1:], gaps, strict=False)
        )
    assert max(chunk.count for chunk in job.chunks) > 3


def test_stanfords_checkpoint_saved_again_scores_the_same(tmp_path: Path) -> None:
    source = make_stanford(tmp_path / "a", "bert", {"dim": 16, "query_maxlen": 20, "doc_maxlen": 40})
    MultiVectorEncoder(str(source), device="cpu").save_pretrained(str(tmp_path / "b"))
    results = []
    for directory in (source, tmp_path / "b"):
        engine = Engine(directory, device=DEVICE, dtype="float32")
        job = engine.tokenize_score(ScoreTexts("rain falls", texts(4, 60), 40))
        for work, result in zip(job.work, engine.run(job.work), strict=True):
            if work.index >= 0:
                job.put(work.index, result)
        results.append(job.results)
    np.testing.assert_allclose(results[0], results[1], atol=1e-5, rtol=0)


def edit(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        (
            "sentence_bert_config.json",
            {"query_expansion": {"strategy": "fixed"}},
            "query_expansion is .*length",
        ),
        (
            "sentence_bert_config.json",
            {"query_expansion": {"strategy": "max", "length": 16}},
            "query_expansion",
        ),
        ("sentence_bert_config.json", {"query_expansion": FIXED | {"fill": 1}}, "query_expansion"),
        ("sentence_bert_config.json", {"query_expansion": FIXED | {"length": "16"}}, "length is '16'"),
        (
            "sentence_bert_config.json",
            {"query_expansion": FIXED | {"token": "[none]"}},
            r"no token '\[none\]'",
        ),
        ("sentence_bert_config.json", {"document_length": 1.5}, "document_length is 1.5"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {}}}, "processing_kwargs"),
        ("config_sentence_transformers.json", {"query_prefix": "[Q] "}, "query_prefix"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "default prompt"),
        ("2_MultiVectorMask/config.json", {"skiplist_tasks": ["query", "document"]}, "skip list"),
        ("2_MultiVectorMask/config.json", {"keep_only_token_ids": [7]}, "keep_only_token_ids"),
        ("3_Normalize/config.json", {"module_input_name": "sentence_embedding"}, "sentence_embedding"),
        ("1_Dense/config.json", {"module_input_name": "sentence_embedding"}, "sentence_embedding"),
    ],
)
def test_unsupported_settings_are_named(
    tmp_path: Path, file: str, change: dict[str, Any], named: str
) -> None:
    directory = save(tmp_path, CASES["fixed"])
    edit(directory / file, change)
    with pytest.raises(ModelLoadFailed, match=named):
        Engine(directory, device=DEVICE, dtype="float32")


@pytest.mark.parametrize("left_out", [2, 3])
def test_other_modules_are_named(tmp_path: Path, left_out: int) -> None:
    directory = save(tmp_path, CASES["fixed"])
    modules = json.loads((directory / "modules.json").read_text())
    modules[left_out]["type"] = "sentence_transformers.x.TokenPooling"
    (directory / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelLoadFailed, match="TokenPooling"):
        Engine(directory, device=DEVICE, dtype="float32")
