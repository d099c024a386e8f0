"""The reference of a checkpoint: the library that its users run, with its own prompts, templates and truncation.

A reference is loaded once and asked several times. Both sides compute in fp32 on the CPU, and every text is run on its
own, so that padding has no effect. Only this room imports the libraries, and only for `sie-server verify`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sie_server.engine.engine import Engine
from sie_server.errors import SIEError
from sie_server.models.heads.labels import log_odds
from sie_server.models.spec import ClassifierSpec, PromptedClassifierSpec


class CannotVerify(SIEError):
    """There is no reference to compare with; the message says why."""


@dataclass(frozen=True)
class Answers:
    """The results of a reference library for one query."""

    reference: str  # library and version
    compared: str  # for example logits
    scores: list[float]  # per document
    ids: list[list[int]]  # per document, with the query's for models that read both in one sequence
    # of the query and every document; empty for cross-encoders
    vectors: list[Tensor] = field(default_factory=list)


Ask = Callable[[str, list[str]], Answers]  # query, documents
Reference = Callable[[Path, Engine], Ask]


def library(name: str) -> Any:
    """Import a reference library.

    Raises:
        CannotVerify: it is not installed.
    """
    try:
        return __import__(name)
    except ImportError:
        package = name.replace("_", "-")
        raise CannotVerify(
            f"{package} is not installed in the server's environment; pip install {package}, then run this again"
        ) from None


def version(module: Any) -> str:
    """Return the name of a library and its version."""
    return f"{module.__name__.replace('_', '-')} {module.__version__}"


def limit_library(model: Any, engine: Engine) -> None:
    """Set the limit of a sentence-transformers model; it keeps its own where the engine has the checkpoint's."""
    own = model.max_seq_length
    if engine.max_seq_length != engine.spec.max_seq_length or (own or 0) > engine.spec.backbone.max_length:
        model.max_seq_length = engine.max_seq_length


def check_architecture(engine: Engine) -> None:
    """Raise CannotVerify if transformers lacks the architecture."""
    if not hasattr(library("transformers"), engine.spec.architecture):
        raise CannotVerify(
            f"the reference of {engine.spec.architecture} is code in its repository, which is never run"
        )


def scores_of(logits: Tensor, engine: Engine) -> list[float]:
    """Return the scores of [pairs, labels]."""
    assert isinstance(engine.spec.head, ClassifierSpec)  # selected by `judges`
    scores: list[float] = log_odds(logits, engine.spec.head.labels).tolist()
    return scores


def without_padding(ids: list[int], engine: Engine) -> list[int]:
    """Return the ids without padding tokens at the end, which a classifier over a decoder does not read."""
    head = engine.spec.head
    padding = head.padding if isinstance(head, PromptedClassifierSpec) else None
    length = next((i for i in range(len(ids), 0, -1) if ids[i - 1] != padding), 0)
    return ids[:length]
