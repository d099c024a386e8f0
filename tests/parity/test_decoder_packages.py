"""Causal rerankers give the scores of their authors' packages; skipped if these are not installed.

`FlagEmbedding` (with `peft` and `accelerate`) and `mxbai-rerank` require other versions of the project's dependencies,
so the project does not require them. To run these tests, install them with `pip install --no-deps --target DIR
FlagEmbedding peft accelerate mxbai-rerank batched` and set `PYTHONPATH=DIR`.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts
from sie_server.engine.text.prompt_tokenizer import PromptTokenizer
from support.checkpoints.cross_encoders import random_text
from support.checkpoints.decoders import make_decoder
from support.device import DEVICE
from support.requests.jobs import run_job

QUERY = "how do stars burn hydrogen?"


def documents() -> list[str]:
    rng = random.Random(4)
    return [random_text(rng, n) for n in (0, 1, 2, 7, 20, 50, 90, 200, 500)]


def ours(engine: Engine, limit: int, instruction: str | None = None) -> list[float]:
    job = engine.tokenize_score(ScoreTexts(QUERY, documents(), limit, instruction))
    return run_job(engine, job)


def test_gemma_equals_flag_embedding(tmp_path: Path) -> None:
    flag = pytest.importorskip("FlagEmbedding")
    directory = make_decoder(tmp_path, "gemma")
    engine = Engine(directory, device=DEVICE, dtype="float32", template="bge-reranker-gemma")
    assert isinstance(engine._tokenizer, PromptTokenizer)
    length = 150  # max_length bounds the passage only, if the query is shorter than the prompt
    reranker = flag.FlagLLMReranker(str(directory), use_fp16=False, devices="cpu", max_length=length)
    expected = reranker.compute_score([(QUERY, document) for document in documents()], batch_size=4)
    prompt = engine._tokenizer._plain.parts[-1]
    query = reranker.tokenizer(f"A: {QUERY}", add_special_tokens=False)["input_ids"]
    limit = 1 + len(query) + 1 + length + 1 + len(prompt)
    np.testing.assert_allclose(ours(engine, limit), expected, atol=1e-3, rtol=0)
    print("max |Δ|", np.abs(np.array(ours(engine, limit)) - expected).max())


@pytest.mark.parametrize("instruction", [None, "prefer short passages"])
def test_qwen2_equals_mxbai_rerank(tmp_path: Path, instruction: str | None) -> None:
    mxbai = pytest.importorskip("mxbai_rerank.mxbai_rerank_v2")
    directory = make_decoder(tmp_path, "qwen2")
    engine = Engine(directory, device=DEVICE, dtype="float32", template="mxbai-rerank-v2")
    reranker = mxbai.MxbaiRerankV2(str(directory), device="cpu", torch_dtype=torch.float32, max_length=150)
    # the package calls a method of transformers 4, from which it needs only the truncation
    reranker.tokenizer.prepare_for_model = lambda first, second, max_length, **_: {
        "input_ids": first + second[: max(0, max_length - len(first))],
    }
    pad = reranker.tokenizer.pad
    reranker.tokenizer.pad = lambda inputs, **kw: pad({k: [i[k] for i in inputs] for k in inputs[0]}, **kw)
    expected = reranker.predict([QUERY] * len(documents()), documents(), instruction=instruction).numpy()
    limit = 150 + reranker.predefined_length
    np.testing.assert_allclose(ours(engine, limit, instruction), expected, atol=1e-3, rtol=0)
    print("max |Δ|", np.abs(np.array(ours(engine, limit, instruction)) - expected).max())
