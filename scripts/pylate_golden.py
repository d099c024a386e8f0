"""Write PyLate's results for three small ColBERT checkpoints, for tests/parity/test_colbert_golden.py.

PyLate 1.6 requires transformers 5.3 and sentence-transformers 5.3, which are older than the versions in the tests, so
it needs a separate environment (`pip install pylate==1.6.0`, and this repository's `tests` on PYTHONPATH). Both steps
are only needed to regenerate the committed files:

    python scripts/pylate_golden.py make      # writes the checkpoints, in the project's own environment
    python scripts/pylate_golden.py encode    # writes golden.npz into each, in PyLate's environment
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "tests" / "parity" / "golden" / "colbert"
WORDS = "rain falls tomorrow over the quiet harbour while stars burn, e-mail - 3.14 naïve café? 東京 (data-driven)"
QUERIES = ["", "rain", "  stars   burn hydrogen ", "why? e-mail.", WORDS]
DOCUMENTS = [
    "",
    "?",
    "- . -",
    "rain falls, tomorrow.",
    WORDS,
    "naïve café (東京)!",
    f"{WORDS} {WORDS} {WORDS}",
]


def make() -> None:
    """Write checkpoints with random weights in the layouts of the published ones."""
    from support.checkpoints.colbert import make_pylate, make_stanford

    shutil.rmtree(GOLDEN, ignore_errors=True)
    GOLDEN.mkdir(parents=True)
    (GOLDEN / "texts.json").write_text(
        json.dumps({"queries": QUERIES, "documents": DOCUMENTS}), encoding="utf-8"
    )
    make_pylate(GOLDEN / "pylate", "bert", dims=(8,), hidden=16)
    make_pylate(
        GOLDEN / "pylate-attend", "xlm-roberta", dims=(8,), hidden=16, attend_to_expansion_tokens=True
    )
    make_stanford(GOLDEN / "stanford", "bert", {"dim": 8, "query_maxlen": 20, "doc_maxlen": 40}, hidden=16)


def encode() -> None:
    """Write token ids, token vectors and scores."""
    from pylate import models, scores

    for directory in sorted(path.parent for path in GOLDEN.glob("*/config.json")):
        model = models.ColBERT(str(directory), device="cpu")
        found = {}
        for kind, texts, is_query in (("query", QUERIES, True), ("document", DOCUMENTS, False)):
            for i, text in enumerate(texts):
                ids = model.tokenize([text], is_query=is_query)["input_ids"][0]
                found[f"{kind}{i}_ids"] = ids.numpy().astype(np.int32)
                found[f"{kind}{i}"] = model.encode(text, is_query=is_query, show_progress_bar=False)
        # one pair at a time, because batches pad documents with zero vectors, which exceed negative matches
        found["scores"] = np.array(
            [
                [
                    float(scores.colbert_scores(found[f"query{q}"][None], found[f"document{d}"][None]))
                    for d in range(len(DOCUMENTS))
                ]
                for q in range(len(QUERIES))
            ]
        )
        np.savez_compressed(directory / "golden.npz", **found)


if __name__ == "__main__":
    {"make": make, "encode": encode}[sys.argv[1]]()
