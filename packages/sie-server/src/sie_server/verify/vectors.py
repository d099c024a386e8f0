"""References of encoders: sentence-transformers' classes for one vector per text, sparse vectors and token vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sie_server.engine.engine import Engine
from sie_server.verify.references import Answers, Ask, CannotVerify, library, limit_library, version


def dense(directory: Path, engine: Engine) -> Ask:
    """Ask `SentenceTransformer` with the checkpoint's prompts."""
    return _encoder("SentenceTransformer", "dense vectors", directory, engine)


def sparse(directory: Path, engine: Engine) -> Ask:
    """Ask `SparseEncoder` with the checkpoint's prompts."""
    return _encoder("SparseEncoder", "sparse vectors", directory, engine, convert_to_sparse_tensor=False)


def _encoder(kind: str, compared: str, directory: Path, engine: Engine, **settings: Any) -> Ask:
    module = library("sentence_transformers")
    model = getattr(module, kind)(str(directory), device="cpu").float()
    limit_library(model, engine)
    settings |= {"batch_size": 1, "show_progress_bar": False, "convert_to_tensor": True}
    if kind == "SparseEncoder":
        del settings["convert_to_tensor"]
    prompts = engine.spec.head.prompts  # type: ignore[union-attr]  # heads that encode have prompts

    def ask(query: str, documents: list[str]) -> Answers:
        vectors = [
            *model.encode([query], prompt=prompts.of(True), **settings).float().cpu(),
            *model.encode(documents, prompt=prompts.of(False), **settings).float().cpu(),
        ]
        ids = [
            model.preprocess([text], prompt=prompts.of(False))["input_ids"][0].tolist() for text in documents
        ]
        scores = [float(vectors[0] @ document) for document in vectors[1:]]
        return Answers(f"{version(module)} ({kind})", compared, scores, ids, vectors)

    return ask


def late_interaction(directory: Path, engine: Engine) -> Ask:
    """Ask `MultiVectorEncoder`, which also reads the layouts of PyLate and Stanford."""
    module = library("sentence_transformers")
    if not hasattr(module, "MultiVectorEncoder"):
        raise CannotVerify(f"{version(module)} has no MultiVectorEncoder; install version 6")
    model = module.MultiVectorEncoder(str(directory), device="cpu").float()
    marker = model.prompts.get("document")

    def ask(query: str, documents: list[str]) -> Answers:
        vectors = [
            model.encode_query([query], show_progress_bar=False)[0],
            *model.encode_document(documents, batch_size=1, show_progress_bar=False),
        ]
        tokens = [torch.as_tensor(matrix).float().cpu() for matrix in vectors]
        scores = [float((tokens[0] @ one.T).amax(1).sum()) for one in tokens[1:]]
        ids = [
            model.preprocess([text], prompt=marker, task="document")["input_ids"][0].tolist()
            for text in documents
        ]
        name = f"{version(module)} (MultiVectorEncoder)"
        return Answers(name, "MaxSim scores and token vectors", scores, ids, tokens)

    return ask
