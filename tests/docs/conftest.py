"""A server with tiny models under the ids of the pages, and a folder with the files that the pages name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.checkpoints import cross_encoders
from support.judged import WORDS
from support.servers import processes
from support.servers.processes import Server

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a models directory."""
    root = tmp_path_factory.mktemp("models")
    cross_encoders.make_cross_encoder(root / "BAAI/bge-reranker-v2-m3", "xlm-roberta", seed=2)
    return root


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Server]:
    with processes.running(tmp_path_factory.mktemp("server"), "--models-dir", str(models)) as running:
        yield running


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which a reader types the commands: a clone with files of the reader."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "examples").symlink_to(ROOT / "examples")
    write_judged(folder / "my-set")
    shutil.copy(folder / "my-set/queries.jsonl", folder / "queries.jsonl")
    rows = [{"id": f"d{i}", "text": f"{WORDS[i]} {WORDS[-i]}"} for i in range(len(WORDS))]
    (folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = [f"q{i} Q0 d{i + k} {k} {-k} bm25\n" for i in range(9) for k in range(4)]
    (folder / "bm25.trec").write_text("".join(run))
    return folder


def write_judged(folder: Path) -> None:
    """Write queries of two words; the document with both is relevant, those with one are not."""
    folder.mkdir()
    pairs = [(WORDS[i], WORDS[(i + 4) % len(WORDS)]) for i in range(len(WORDS))]
    documents = {f"d{i}": f"the {a} and the {b} of the town" for i, (a, b) in enumerate(pairs)}
    queries = {f"q{i}": f"{a} and {b}" for i, (a, b) in enumerate(pairs)}
    for name, texts in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    count = len(pairs)
    judged = [
        f"q{i}\td{j}\t{int(i == j)}\n" for i in range(count) for j in (i, (i + 4) % count, (i - 4) % count)
    ]
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))
