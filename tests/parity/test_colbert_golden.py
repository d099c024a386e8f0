"""Ids, vectors and scores equal those of PyLate 1.6, recorded by scripts/pylate_golden.py on committed checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts
from support.device import DEVICE

GOLDEN = Path(__file__).parent / "golden" / "colbert"


@pytest.mark.parametrize("name", ["pylate", "pylate-attend", "stanford"])
def test_pylate_agrees(name: str) -> None:
    texts = json.loads((GOLDEN / "texts.json").read_text(encoding="utf-8"))
    with np.load(GOLDEN / name / "golden.npz") as file:
        golden = dict(file)
    engine = Engine(GOLDEN / name, device=DEVICE, dtype="float32")
    limit = engine.max_seq_length
    for kind, values in (("query", texts["queries"]), ("document", texts["documents"])):
        job = engine.tokenize_encode(values, ("multivector",), limit, is_query=kind == "query")
        for work, result in zip(job.work, engine.run(job.work), strict=True):
            expected = golden[f"{kind}{work.index}"]
            assert work.tokens.ids.tolist() == golden[f"{kind}{work.index}_ids"].tolist()
            assert result["multivector"].shape == expected.shape
            np.testing.assert_allclose(result["multivector"], expected, atol=1e-4, rtol=0)
    for query, expected in zip(texts["queries"], golden["scores"], strict=True):
        job = engine.tokenize_score(ScoreTexts(query, texts["documents"], limit))
        for work, result in zip(job.work, engine.run(job.work), strict=True):
            if work.index >= 0:
                job.put(work.index, result)
        ours = job.results
        np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)
