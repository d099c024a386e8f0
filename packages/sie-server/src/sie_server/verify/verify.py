"""Compares this engine's scores with a reference library's, on this machine and these weights (`sie-server verify`).

Raw logits or vectors are compared, in fp32 on the CPU: a sigmoid would hide differences. `verify.references` computes
the library's results.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sie_server.engine.engine import Engine
from sie_server.engine.job import QUERY, Job, ScoreTexts, Sparse
from sie_server.models.spec import CausalSpec, LateInteractionSpec
from sie_server.verify.references import Answers, reference_of

QUERY_TEXT = "how do stars burn hydrogen"
SENTENCES = (
    "Stars burn hydrogen into helium in their cores for billions of years.",
    "Die Straßenbahn fährt über die Brücke nach Österreich.",
    "Le café était déjà fermé quand nous sommes arrivés.",
    "Метро было открыто в тысяча девятьсот тридцать пятом году.",
    "東京は日本の首都です。 机器学习从数据中学习。",
    'The function returns {"a": [1, 2.5], "b": null}; see section 3.14.',
)


@dataclass(frozen=True)
class Report:
    """The result of a comparison."""

    reference: str
    compared: str
    pairs: int
    max_difference: float
    kendall_tau: float
    first_token_difference: str | None  # in the first text whose token ids differ

    def equal(self, tolerance: float) -> bool:
        """Return whether all ids are equal and all values agree; a NaN on either side never agrees."""
        return self.first_token_difference is None and self.max_difference <= tolerance


def verify(
    directory: Path, pairs: int, template: str | None = None, label: str | int | None = None
) -> Report:
    """Load a checkpoint with the engine and with its reference library, and compare the results.

    Raises:
        CannotVerify: the library is not installed, or does not support this kind of model.
        ModelLoadFailed: the engine cannot load the checkpoint.
    """
    engine = Engine(
        directory, device="cpu", dtype="float32", template=template, label=label, share_prefix=False
    )
    reference, documents = reference_of(directory, engine), sample(pairs)
    if isinstance(engine.spec.head, CausalSpec):
        # no library defines how a filled template is truncated
        cut = engine.tokenize_score(ScoreTexts(QUERY_TEXT, documents, engine.max_seq_length)).truncated
        documents = [text for text, was_cut in zip(documents, cut, strict=True) if not was_cut]
    with torch.inference_mode():
        theirs = reference(directory, engine, QUERY_TEXT, documents)
    ours = _ours(engine, documents, theirs)
    differences = [_distance(ours.scores, theirs.scores)]
    differences += [float((a - b).abs().max()) for a, b in zip(ours.vectors, theirs.vectors, strict=True)]
    return Report(
        theirs.reference,
        theirs.compared,
        len(documents),
        # max() may ignore a NaN
        next((d for d in differences if d != d), max(differences)),
        kendall_tau(ours.scores, theirs.scores),
        _first_difference(ours.ids, theirs.ids),
    )


@dataclass(frozen=True)
class _Ours:
    scores: list[float]
    ids: list[list[int]]
    vectors: list[torch.Tensor]


def _ours(engine: Engine, documents: list[str], theirs: Answers) -> _Ours:
    """Return this engine's scores; if the model has only vectors, their products."""
    if not theirs.vectors or isinstance(engine.spec.head, LateInteractionSpec):
        job = engine.tokenize_score(ScoreTexts(QUERY_TEXT, documents, engine.max_seq_length))
        scores = [float(value) for value in _results(engine, job)]
        vectors = _vectors(engine, documents) if theirs.vectors else []
        return _Ours(scores, _ids(job), vectors)
    vectors = _vectors(engine, documents)
    job = engine.tokenize_encode(documents, ("dense",), engine.max_seq_length)
    return _Ours([float(vectors[0] @ document) for document in vectors[1:]], _ids(job), vectors)


def _vectors(engine: Engine, documents: list[str]) -> list[torch.Tensor]:
    """Return the vectors of the query and every document: dense, or the only output that the model has."""
    outputs = [output for output in engine.spec.outputs if output != "score"]
    name, limit = "dense" if "dense" in outputs else outputs[0], engine.max_seq_length
    query = engine.tokenize_encode([QUERY_TEXT], (name,), limit, is_query=True)
    job = engine.tokenize_encode(documents, (name,), limit)
    results = [*_results(engine, query), *_results(engine, job)]
    return [_tensor(result[name], engine.spec.backbone.vocab_size) for result in results]


def _tensor(values: Any, vocabulary: int) -> torch.Tensor:
    if not isinstance(values, Sparse):
        return torch.from_numpy(values)
    whole = torch.zeros(vocabulary)
    whole[torch.from_numpy(values.indices).long()] = torch.from_numpy(values.values)
    return whole


def sample(count: int) -> list[str]:
    """Return `count` texts in several scripts, from empty to beyond most limits; always the same."""
    rng = random.Random(0)
    words = " ".join(SENTENCES).split()
    texts = ["", *SENTENCES]
    while len(texts) < count:
        texts.append(" ".join(rng.choice(words) for _ in range(min(1500, int(rng.lognormvariate(4, 1))))))
    return texts[:count]


def _results(engine: Engine, job: Job) -> list[Any]:
    for work in job.work:
        [result] = engine.run([work])
        if work.index != QUERY:
            job.put(work.index, result)
    return job.results


def _ids(job: Job) -> list[list[int]]:
    """Return the ids of every document, in order; equal sequences share one work."""
    found = {
        index: work.tokens.ids.tolist()
        for work in job.work
        for index in (work.index, *job.copies.get(work.index, ()))
    }
    return [found[index] for index in range(len(job.results))]


def _first_difference(ours: list[list[int]], theirs: list[list[int]]) -> str | None:
    for text, (own, reference) in enumerate(zip(ours, theirs, strict=True)):
        if own != reference:
            both = zip(own, reference, strict=False)
            at = next((i for i, (a, b) in enumerate(both) if a != b), min(len(own), len(reference)))
            return f"text {text}, token {at}: ours {own[at : at + 1]}, reference {reference[at : at + 1]}"
    return None


def _distance(ours: list[float], theirs: list[float]) -> float:
    return float((torch.tensor(ours) - torch.tensor(theirs)).abs().max())


def kendall_tau(first: list[float], second: list[float]) -> float:
    """Return Kendall's tau-b of two lists of scores; 1 if both are constant."""
    agree, ties = 0, [0, 0]
    total = len(first) * (len(first) - 1) // 2
    for i in range(len(first)):
        for j in range(i):
            signs = [(x[i] > x[j]) - (x[i] < x[j]) for x in (first, second)]
            agree += signs[0] * signs[1]
            ties = [t + (s == 0) for t, s in zip(ties, signs, strict=True)]
    scale: float = ((total - ties[0]) * (total - ties[1])) ** 0.5
    return agree / scale if scale else float(ties[0] == ties[1])
