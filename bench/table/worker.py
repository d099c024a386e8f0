"""The process of one contender: it loads a model, scores on command, and reports times and logits.

Each contender has a process of its own, so that memory, threads and allocators are its own. Commands and answers are
lines of JSON on stdin and stdout; what libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import contenders
from bench.contenders import Logits, Products
from bench.machine import Bystanders
from bench.table.entries import ENTRIES, Entry
from bench.table.plan import TABLE_SHAPES, tiny
from bench.workload import QUERY

LIMIT = 512  # tokens of a pair
Score = Callable[[list[str], int], Logits]
Lengths = Callable[[list[str]], list[int]]


class Contender:
    """One contender with its model loaded."""

    def __init__(self, entry: Entry, directory: Path, folder: Path) -> None:
        self.score, self.lengths = _loaded(entry, directory, folder)
        self._products: Products | None = None
        self._documents: list[str] = []
        self._batch = entry.batches[0]
        self._logits: Logits | None = None

    def documents(self, texts: list[str]) -> dict[str, Any]:
        """Set the documents of the next runs; the answer has the tokens of each pair, if this contender counts them."""
        self._documents = texts
        return {"lengths": self.lengths(texts) if self.lengths else None}

    def batch(self, size: int) -> dict[str, Any]:
        """Set the batch size of the next runs."""
        self._batch = size
        return {}

    def run(self) -> dict[str, Any]:
        """Score once; the answer has the seconds and the cores that other processes used at that time."""
        with Bystanders() as taken:
            self._logits = self.score(self._documents, self._batch)
        return {"seconds": taken.elapsed, "others": round(taken.cores, 2)}

    def logits(self) -> dict[str, Any]:
        """Return the logits of the last run."""
        assert self._logits is not None
        return {"logits": [float(value) for value in self._logits]}

    def products(self, shape: str, is_tiny: bool) -> dict[str, Any]:
        """Run the matrix products of a shape alone; the answer has their rate in operations per second."""
        if self._products is None:
            found = TABLE_SHAPES[shape]
            self._products = Products(tiny(found) if is_tiny else found, torch.bfloat16)
            self._products()
        with Bystanders() as taken:
            self._products()
        return {"rate": self._products.flops / taken.elapsed}


def _loaded(entry: Entry, directory: Path, folder: Path) -> tuple[Score, Lengths | None]:
    if entry.library == "ours":
        return _ours(directory, entry.dtype)
    if entry.library == "sentence-transformers":
        return _sentence_transformers(directory, entry.dtype), None
    from bench.rivals import exported, onnx_runtime, openvino
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    rival: Any = openvino if entry.library == "openvino" else onnx_runtime
    run = rival.read(folder / entry.file)
    return lambda documents, batch: exported.score(run, tokenizer, documents, batch), None


def _ours(directory: Path, dtype: str) -> tuple[Score, Lengths]:
    from sie_server.engine.calibration import calibrate
    from sie_server.engine.engine import Engine
    from sie_server.engine.job import ScoreTexts

    engine = Engine(directory, device="cpu", dtype=dtype, max_seq_length=LIMIT)
    calibrate(engine)

    def lengths(documents: list[str]) -> list[int]:
        job = engine.tokenize_score(ScoreTexts(QUERY, documents, engine.max_seq_length))
        return [len(work.tokens) for work in job.work]

    return lambda documents, _: contenders.ours(engine, documents), lengths


def _sentence_transformers(directory: Path, dtype: str) -> Score:
    from sentence_transformers import CrossEncoder

    options = {"dtype": getattr(torch, dtype)}
    model = CrossEncoder(str(directory), device="cpu", max_length=LIMIT, model_kwargs=options)

    def score(documents: list[str], batch: int) -> Logits:
        pairs = [(QUERY, document) for document in documents]
        found = model.predict(
            pairs, batch_size=batch, show_progress_bar=False, activation_fn=torch.nn.Identity()
        )
        return np.asarray(found, dtype=np.float64).reshape(-1)

    return score


def convert(converter: str, directory: Path, folder: Path, documents: list[str]) -> None:
    """Write the files of a rival for a checkpoint; the documents calibrate its rounding."""
    from bench.rivals import onnx_runtime, openvino

    if converter == "openvino":
        openvino.write(directory, documents, folder)
    else:
        onnx_runtime.write(directory, folder)


def main() -> None:
    """Serve the commands of the parent process until it closes stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    label, directory, folder, threads = sys.argv[1:]
    if int(threads):
        torch.set_num_threads(int(threads))
    contender: Any = None
    for line in sys.stdin:
        command = json.loads(line)
        name, arguments = command["do"], command["with"]
        try:
            if name == "convert":
                convert(label, Path(directory), Path(folder), **arguments)
                answer: dict[str, Any] = {}
            elif name == "load":
                entry = next(entry for entry in ENTRIES if entry.label == label)
                if entry.library != "ours":  # ours needs none of them, and its memory shall show that
                    contenders.quiet_libraries()
                contender, answer = Contender(entry, Path(directory), Path(folder)), {}
            else:
                answer = getattr(contender, name)(**arguments)
        except Exception as error:  # a rival's failure is a row of the table
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
