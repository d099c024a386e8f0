"""Our scores against the reference library's, on this machine and these weights (`sie-server verify`).

transformers and sentence-transformers are imported here and nowhere else, when asked for. Both sides compute in
fp32 on the CPU, and raw logits or vectors are compared: a sigmoid would hide differences.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sie_server.engine.engine import Engine
from sie_server.engine.job import QUERY, Job
from sie_server.errors import SIEError
from sie_server.models.spec import ClassifierSpec, EmbeddingSpec

QUERY_TEXT = "how do stars burn hydrogen"
SENTENCES = (
    "Stars burn hydrogen into helium in their cores for billions of years.",
    "Die Straßenbahn fährt über die Brücke nach Österreich.",
    "Le café était déjà fermé quand nous sommes arrivés.",
    "Метро было открыто в тысяча девятьсот тридцать пятом году.",
    "東京は日本の首都です。 机器学习从数据中学习。",
    'The function returns {"a": [1, 2.5], "b": null}; see section 3.14.',
)


class CannotVerify(SIEError):
    """There is nothing to compare with; says why."""


@dataclass(frozen=True)
class Report:
    """What was found; token ids are those of the first text where the two sides differ."""

    reference: str
    compared: str
    pairs: int
    max_difference: float
    kendall_tau: float
    first_token_difference: str | None

    def equal(self, tolerance: float) -> bool:
        """True when ids are the same and values agree; a NaN on either side never does."""
        return self.first_token_difference is None and self.max_difference <= tolerance


def verify(directory: Path, pairs: int) -> Report:
    """Load a checkpoint twice and compare.

    Raises:
        CannotVerify: the library is not installed, or has no such kind of model.
        ModelLoadFailed: we cannot load it.
    """
    engine = Engine(directory, device="cpu", dtype="float32")
    documents = sample(pairs)
    if isinstance(engine.spec.head, ClassifierSpec):
        return _classifier(directory, engine, documents)
    if (directory / "sie_scorer.json").exists():
        raise CannotVerify("this model's scorer is our own; no reference library has it")
    if isinstance(engine.spec.head, EmbeddingSpec) and "dense" in engine.spec.outputs:
        return _encoder(directory, engine, documents)
    raise CannotVerify(f"no reference for {engine.spec.architecture} giving {', '.join(engine.spec.outputs)}")


def sample(count: int) -> list[str]:
    """Texts in several scripts, from empty to beyond most limits; the same ones every time."""
    rng = random.Random(0)
    words = " ".join(SENTENCES).split()
    texts = ["", *SENTENCES]
    while len(texts) < count:
        texts.append(" ".join(rng.choice(words) for _ in range(min(1500, int(rng.lognormvariate(4, 1))))))
    return texts[:count]


def _classifier(directory: Path, engine: Engine, documents: list[str]) -> Report:
    transformers = _library("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    ours = engine.tokenize_score(QUERY_TEXT, documents, engine.max_seq_length)
    theirs, ids = [], []
    for document in documents:
        inputs = tokenizer(
            [QUERY_TEXT],
            [document],  # in lists: an empty text by itself would count as no second text
            truncation="only_second",
            max_length=engine.max_seq_length,
            return_tensors="pt",
        )
        with torch.inference_mode():
            theirs.append(float(model.eval()(**inputs).logits[0, 0]))
        ids.append(inputs.input_ids[0].tolist())
    scores = [float(value) for value in _results(engine, ours)]
    return _report(
        f"transformers {transformers.__version__}", "logits", scores, theirs, _first_difference(ours, ids)
    )


def _encoder(directory: Path, engine: Engine, documents: list[str]) -> Report:
    library = _library("sentence_transformers")
    model = library.SentenceTransformer(str(directory), device="cpu").float()
    texts = [QUERY_TEXT, *documents]
    job = engine.tokenize_encode(texts, ("dense",), engine.max_seq_length)
    model.max_seq_length = engine.max_seq_length
    ids = [
        model.tokenizer(text, truncation=True, max_length=engine.max_seq_length).input_ids for text in texts
    ]
    ours = torch.stack([torch.from_numpy(result["dense"]) for result in _results(engine, job)])
    theirs = model.encode(texts, prompt="", convert_to_tensor=True, show_progress_bar=False).float().cpu()
    report = _report(
        f"sentence-transformers {library.__version__}",
        "vectors",
        (ours[1:] @ ours[0]).tolist(),
        (theirs[1:] @ theirs[0]).tolist(),
        _first_difference(job, ids),
    )
    # the components say more than the products the order is made of
    return Report(**{**report.__dict__, "max_difference": float((ours - theirs).abs().max())})


def _library(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        package = name.replace("_", "-")
        raise CannotVerify(
            f"{package} is not installed beside the server; pip install {package}, then run this again"
        ) from None


def _results(engine: Engine, job: Job) -> list[Any]:
    for work in job.work:
        [result] = engine.run([work])
        if work.index != QUERY:
            job.put(work.index, result)
    return job.results


def _first_difference(job: Job, theirs: list[list[int]]) -> str | None:
    ours = {work.index: work.tokens.ids.tolist() for work in job.work}
    for text, reference in enumerate(theirs):
        if ours[text] != reference:
            both = zip(ours[text], reference, strict=False)
            at = next((i for i, (a, b) in enumerate(both) if a != b), min(len(ours[text]), len(reference)))
            return (
                f"text {text}, token {at}: ours {ours[text][at : at + 1]}, reference {reference[at : at + 1]}"
            )
    return None


def _report(
    reference: str, compared: str, ours: list[float], theirs: list[float], first: str | None
) -> Report:
    difference = float((torch.tensor(ours) - torch.tensor(theirs)).abs().max())
    return Report(reference, compared, len(ours), difference, kendall_tau(ours, theirs), first)


def kendall_tau(first: list[float], second: list[float]) -> float:
    """Kendall's tau-b of two orders of the same things; 1 when both are constant."""
    agree, ties = 0, [0, 0]
    total = len(first) * (len(first) - 1) // 2
    for i in range(len(first)):
        for j in range(i):
            signs = [(x[i] > x[j]) - (x[i] < x[j]) for x in (first, second)]
            agree += signs[0] * signs[1]
            ties = [t + (s == 0) for t, s in zip(ties, signs, strict=True)]
    scale: float = ((total - ties[0]) * (total - ties[1])) ** 0.5
    return agree / scale if scale else float(ties[0] == ties[1])
