"""The results of reference libraries, per kind of checkpoint: token ids, and raw logits or vectors.

Only this module imports the libraries, and only for `sie-server verify`. Both sides compute in fp32 on the CPU. Every
text is run on its own, so that padding has no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sie_server.engine.engine import Engine
from sie_server.engine.text.prompt_tokenizer import PromptTokenizer
from sie_server.errors import SIEError
from sie_server.models.checkpoints.chat_template import FILE as CHAT_TEMPLATE
from sie_server.models.heads.labels import log_odds
from sie_server.models.heads.sparse import M3Spec, SpladeSpec
from sie_server.models.spec import (
    CausalSpec,
    ClassifierSpec,
    EmbeddingSpec,
    LateInteractionSpec,
    PromptedClassifierSpec,
)
from sie_server.templates import PLACEHOLDER


class CannotVerify(SIEError):
    """There is no reference to compare with; the message says why."""


@dataclass(frozen=True)
class Answers:
    """The results of a reference library."""

    reference: str  # library and version
    compared: str  # for example logits
    scores: list[float]  # per document
    ids: list[list[int]]  # per document, with the query's for models that read both in one sequence
    # of the query and every document; empty for cross-encoders
    vectors: list[Tensor] = field(default_factory=list)


Reference = Callable[[Path, Engine, str, list[str]], Answers]


def reference_of(directory: Path, engine: Engine) -> Reference:
    """Return the reference for a checkpoint's kind.

    Raises:
        CannotVerify: no library supports this kind.
    """
    if (directory / "sie_scorer.json").exists():
        raise CannotVerify("this model's scorer is specific to this server; no reference library has it")
    head = engine.spec.head
    if isinstance(head, ClassifierSpec) and head.modules:
        return _modular_classifier
    if isinstance(head, CausalSpec) and head.template.source == CHAT_TEMPLATE:
        return _logit_score
    if type(head) not in REFERENCES:
        raise CannotVerify(
            f"no reference library supports {engine.spec.architecture} without code from its repository"
        )
    return REFERENCES[type(head)]


def _classifier(directory: Path, engine: Engine, query: str, documents: list[str]) -> Answers:
    if not hasattr(_library("transformers"), engine.spec.architecture):
        raise CannotVerify(
            f"the reference of {engine.spec.architecture} is code in its repository, which is never run"
        )
    return sequence_classifier(directory, engine, query, documents)


def sequence_classifier(directory: Path, engine: Engine, query: str, documents: list[str]) -> Answers:
    """Run the model and tokenizer of transformers, with only the document truncated."""
    library = _library("transformers")
    model = library.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    tokenizer = library.AutoTokenizer.from_pretrained(directory)
    pairs = [_pair(tokenizer, engine, query, text) for text in documents]
    assert isinstance(engine.spec.head, ClassifierSpec)  # selected by `REFERENCES`
    labels = engine.spec.head.labels
    logits = [float(log_odds(model.eval()(**pair).logits, labels)) for pair in pairs]
    ids = [pair.input_ids[0].tolist() for pair in pairs]
    return Answers(f"transformers {library.__version__}", "logits", logits, ids)


def _pair(tokenizer: Any, engine: Engine, query: str, document: str) -> Any:
    # in lists: a bare empty string would count as no second text
    return tokenizer(
        [query],
        [document],
        truncation="only_second",
        max_length=engine.max_seq_length,
        return_tensors="pt",
    )


def _modular_classifier(directory: Path, engine: Engine, query: str, documents: list[str]) -> Answers:
    """Run a head made of modules, which `AutoModelForSequenceClassification` would initialise at random."""
    model, name = _cross_encoder(directory, engine)
    pairs = [_pair(model.tokenizer, engine, query, text) for text in documents]
    ids = [pair.input_ids[0].tolist() for pair in pairs]
    return Answers(name, "logits", _predict(model, engine, query, documents), ids)


def _logit_score(directory: Path, engine: Engine, query: str, documents: list[str]) -> Answers:
    """Run a reranker with a chat template, which sentence-transformers renders: `LogitScore`, or a classifier."""
    model, name = _cross_encoder(directory, engine)
    ids = [model.preprocess([(query, text)])["input_ids"][0].tolist() for text in documents]
    ids = [_without_padding(one, engine) for one in ids]
    return Answers(name, "logits", _predict(model, engine, query, documents), ids)


def _cross_encoder(directory: Path, engine: Engine) -> tuple[Any, str]:
    library = _library("sentence_transformers")
    model = library.CrossEncoder(str(directory), device="cpu", model_kwargs={"dtype": torch.float32})
    model.max_seq_length = engine.max_seq_length
    return model, f"sentence-transformers {library.__version__}"


def _predict(model: Any, engine: Engine, query: str, documents: list[str]) -> list[float]:
    logits = model.predict(
        [(query, text) for text in documents],
        batch_size=1,
        activation_fn=torch.nn.Identity(),
        show_progress_bar=False,
    )
    assert isinstance(engine.spec.head, ClassifierSpec)  # the callers are references of classifiers
    rows = torch.as_tensor(logits).reshape(len(documents), -1)
    return list(map(float, log_odds(rows, engine.spec.head.labels)))


def _causal(directory: Path, engine: Engine, query: str, documents: list[str]) -> Answers:
    """Tokenise the template's pieces with transformers, and take the answer's logits of the whole model."""
    library = _library("transformers")
    tokenizer = library.AutoTokenizer.from_pretrained(directory)
    model = library.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    assert isinstance(engine.spec.head, CausalSpec)  # selected by `REFERENCES`
    ours = PromptTokenizer(directory, engine.spec.head.template)
    ids = [_filled(tokenizer, ours, query, text) for text in documents]
    logits = [model(torch.tensor([one])).logits[0, -1] for one in ids]
    answer, *other = ours.answers
    scores = [float(row[answer] - (row[other[0]] if other else 0.0)) for row in logits]
    return Answers(f"transformers {library.__version__}", "logits", scores, ids)


def _prompted_classifier(directory: Path, engine: Engine, query: str, documents: list[str]) -> Answers:
    """Tokenise the template's pieces with transformers, and run its classifier over the decoder."""
    library = _library("transformers")
    if not hasattr(library, engine.spec.architecture):
        raise CannotVerify(
            f"the reference of {engine.spec.architecture} is code in its repository, which is never run"
        )
    tokenizer = library.AutoTokenizer.from_pretrained(directory)
    loaded = library.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    model = loaded.eval()
    assert isinstance(engine.spec.head, CausalSpec)  # selected by `REFERENCES`
    ours = PromptTokenizer(directory, engine.spec.head.template)
    ids = [_filled(tokenizer, ours, query, text) for text in documents]
    labels = engine.spec.head.labels
    scores = [float(log_odds(model(torch.tensor([one])).logits, labels)) for one in ids]
    ids = [_without_padding(one, engine) for one in ids]
    return Answers(f"transformers {library.__version__}", "logits", scores, ids)


def _without_padding(ids: list[int], engine: Engine) -> list[int]:
    """Return the ids without padding tokens at the end, which a classifier over a decoder does not read."""
    head = engine.spec.head
    padding = head.padding if isinstance(head, PromptedClassifierSpec) else None
    length = next((i for i in range(len(ids), 0, -1) if ids[i - 1] != padding), 0)
    return ids[:length]


def _filled(tokenizer: Any, ours: PromptTokenizer, query: str, document: str) -> list[int]:
    template = ours.template
    texts = {"query": query, "document": document, "instruction": template.default_instruction or ""}
    ids: list[int] = ours.start.tolist()
    for piece in template.pieces:
        text = PLACEHOLDER.sub(lambda match: texts[match[1]], piece)
        ids += tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _dense(directory: Path, engine: Engine, query: str, documents: list[str]) -> Answers:
    library = _library("sentence_transformers")
    model = library.SentenceTransformer(str(directory), device="cpu").float()
    model.max_seq_length = engine.max_seq_length
    vectors = model.encode(
        [query, *documents], prompt="", batch_size=1, convert_to_tensor=True, show_progress_bar=False
    )
    return _answers(
        library, "dense vectors", list(vectors.float().cpu()), _ids(model.tokenizer, engine, documents)
    )


def _sparse(directory: Path, engine: Engine, query: str, documents: list[str]) -> Answers:
    library = _library("sentence_transformers")
    model = library.SparseEncoder(str(directory), device="cpu").float()
    model.max_seq_length = engine.max_seq_length
    vectors = model.encode(
        [query, *documents],
        prompt="",
        batch_size=1,
        convert_to_sparse_tensor=False,
        show_progress_bar=False,
    )
    return _answers(
        library, "sparse vectors", list(vectors.float().cpu()), _ids(model.tokenizer, engine, documents)
    )


def _late_interaction(directory: Path, engine: Engine, query: str, documents: list[str]) -> Answers:
    """Run `MultiVectorEncoder`, which also reads the layouts of PyLate and Stanford."""
    library = _library("sentence_transformers")
    if not hasattr(library, "MultiVectorEncoder"):
        raise CannotVerify(
            f"sentence-transformers {library.__version__} has no MultiVectorEncoder; install version 6"
        )
    model = library.MultiVectorEncoder(str(directory), device="cpu").float()
    vectors = [
        model.encode_query([query], show_progress_bar=False)[0],
        *model.encode_document(documents, batch_size=1, show_progress_bar=False),
    ]
    tokens = [torch.as_tensor(matrix).float().cpu() for matrix in vectors]
    scores = [float((tokens[0] @ one.T).amax(1).sum()) for one in tokens[1:]]
    marker = model.prompts.get("document")
    ids = [
        model.preprocess([text], prompt=marker, task="document")["input_ids"][0].tolist()
        for text in documents
    ]
    name = f"sentence-transformers {library.__version__}"
    return Answers(name, "MaxSim scores and token vectors", scores, ids, tokens)


def _answers(library: Any, compared: str, vectors: list[Tensor], ids: list[list[int]]) -> Answers:
    scores = [float(vectors[0] @ document) for document in vectors[1:]]
    return Answers(f"sentence-transformers {library.__version__}", compared, scores, ids, vectors)


def _ids(tokenizer: Any, engine: Engine, texts: Iterable[str]) -> list[list[int]]:
    limit = engine.max_seq_length
    return [tokenizer(text, truncation=True, max_length=limit).input_ids for text in texts]


REFERENCES: dict[type, Reference] = {
    ClassifierSpec: _classifier,
    CausalSpec: _causal,
    PromptedClassifierSpec: _prompted_classifier,
    EmbeddingSpec: _dense,
    M3Spec: _dense,  # only FlagEmbedding has the other two outputs
    SpladeSpec: _sparse,
    LateInteractionSpec: _late_interaction,
}


def _library(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        package = name.replace("_", "-")
        raise CannotVerify(
            f"{package} is not installed in the server's environment; pip install {package}, then run this again"
        ) from None
