"""Compares this engine's scores with a reference library's, on this machine and these weights (`sie-server verify`).

Raw logits or vectors are compared, in fp32 on the CPU: a sigmoid would hide differences. `verify.references` computes
the library's results.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sie_server.engine.engine import Engine
from sie_server.engine.job import QUERY, Job, ScoreTexts, Sparse
from sie_server.models.spec import CausalSpec, LateInteractionSpec
from sie_server.templates.pair_settings import Truncation
from sie_server.verify.judges import reference_of
from sie_server.verify.lengths import QUERY_TEXT, cases, lower_limit, sample
from sie_server.verify.prompted import RULES
from sie_server.verify.references import Answers, Ask


@dataclass(frozen=True)
class Report:
    """The result of a comparison."""

    reference: str
    compared: str
    pairs: int
    limit: int  # tokens
    queries: tuple[int, ...]  # tokens of the queries that were compared
    documents: tuple[int, ...]  # tokens of the documents
    max_difference: float
    kendall_tau: float
    first_token_difference: str | None  # in the first text whose token ids differ

    def equal(self, tolerance: float) -> bool:
        """Return whether all ids are equal and all values agree; a NaN on either side never agrees."""
        return self.first_token_difference is None and self.max_difference <= tolerance


def verify(
    directory: Path,
    pairs: int,
    template: str | None = None,
    truncation: Truncation | None = None,
    label: str | int | None = None,
) -> Report:
    """Load a checkpoint with the engine and with its reference library, and compare the results.

    `pairs` texts are compared at once, and then texts with lengths around every limit.

    Raises:
        CannotVerify: the library is not installed, or does not support this kind of model.
        ModelLoadFailed: the engine cannot load the checkpoint.
    """
    engine = Engine(
        directory,
        device="cpu",
        dtype="float32",
        template=template,
        truncation=truncation,
        label=label,
        share_prefix=False,
    )
    reference = reference_of(directory, engine)
    lower_limit(engine)
    with torch.inference_mode():
        return compare(engine, reference(directory, engine), pairs)


def compare(engine: Engine, ask: Ask, pairs: int) -> Report:
    """Compare the engine with a reference over a sample of texts and over lengths around every limit."""
    found, documents = cases(engine), _without_rule(engine, sample(pairs))
    parts = [_compared(engine, ask, QUERY_TEXT, documents)]
    parts += [_compared(engine, ask, case.query, case.documents) for case in found]
    ours = [score for part in parts for score in part.ours]
    theirs = [score for part in parts for score in part.theirs.scores]
    differences = [part.difference for part in parts]
    at = ["", *(f"query of {case.query_tokens} tokens, " for case in found)]
    return Report(
        parts[0].theirs.reference,
        parts[0].theirs.compared,
        len(ours),
        engine.max_seq_length,
        tuple(sorted({case.query_tokens for case in found})),
        tuple(sorted({length for case in found for length in case.document_tokens})),
        # max() may ignore a NaN
        next((d for d in differences if d != d), max(differences)),
        kendall_tau(ours, theirs),
        next((where + part.ids for where, part in zip(at, parts, strict=True) if part.ids), None),
    )


def _without_rule(engine: Engine, documents: list[str]) -> list[str]:
    """Return the documents, without those that are cut where no library says how their template is cut."""
    head = engine.spec.head
    if not isinstance(head, CausalSpec) or head.template.name in RULES or head.template.cut == "document":
        return documents
    cut = engine.tokenize_score(ScoreTexts(QUERY_TEXT, documents, engine.max_seq_length)).truncated
    return [text for text, was_cut in zip(documents, cut, strict=True) if not was_cut]


@dataclass(frozen=True)
class _Compared:
    """The results of both sides for one query."""

    ours: list[float]
    theirs: Answers
    difference: float
    ids: str | None  # the first difference


def _compared(engine: Engine, ask: Ask, query: str, documents: list[str]) -> _Compared:
    theirs = ask(query, documents)
    ours = _ours(engine, query, documents, theirs)
    differences = [_distance(ours.scores, theirs.scores)]
    for a, b in zip(ours.vectors, theirs.vectors, strict=True):
        differences.append(float((a - b).abs().max()) if a.shape == b.shape else float("inf"))
    difference = next((d for d in differences if d != d), max(differences))
    return _Compared(ours.scores, theirs, difference, _first_difference(ours.ids, theirs.ids))


@dataclass(frozen=True)
class _Ours:
    scores: list[float]
    ids: list[list[int]]
    vectors: list[torch.Tensor]


def _ours(engine: Engine, query: str, documents: list[str], theirs: Answers) -> _Ours:
    """Return this engine's scores; if the model has only vectors, their products."""
    if not theirs.vectors or isinstance(engine.spec.head, LateInteractionSpec):
        job = engine.tokenize_score(ScoreTexts(query, documents, engine.max_seq_length))
        scores = [float(value) for value in _results(engine, job)]
        vectors = _vectors(engine, query, documents)[0] if theirs.vectors else []
        return _Ours(scores, _ids(job), vectors)
    vectors, job = _vectors(engine, query, documents)
    return _Ours([float(vectors[0] @ document) for document in vectors[1:]], _ids(job), vectors)


def _vectors(engine: Engine, query: str, documents: list[str]) -> tuple[list[torch.Tensor], Job]:
    """Return the vectors of the query and every document, dense or the only output, and the documents' job."""
    outputs = [output for output in engine.spec.outputs if output != "score"]
    name, limit = "dense" if "dense" in outputs else outputs[0], engine.max_seq_length
    prompts = engine.spec.head.prompts  # type: ignore[union-attr]  # heads that encode have prompts
    asked = engine.tokenize_encode([query], (name,), limit, is_query=True, prompt=prompts.of(True))
    job = engine.tokenize_encode(documents, (name,), limit, prompt=prompts.of(False))
    results = [*_results(engine, asked), *_results(engine, job)]
    return [_tensor(result[name], engine.spec.backbone.vocab_size) for result in results], job


def _tensor(values: Any, vocabulary: int) -> torch.Tensor:
    if not isinstance(values, Sparse):
        return torch.from_numpy(values)
    whole = torch.zeros(vocabulary)
    whole[torch.from_numpy(values.indices).long()] = torch.from_numpy(values.values)
    return whole


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
