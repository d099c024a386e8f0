"""Checkpoint → the reference that its users run."""

from __future__ import annotations

from pathlib import Path

from sie_server.engine.engine import Engine
from sie_server.models.checkpoints.chat_template import FILE as CHAT_TEMPLATE
from sie_server.models.heads.sparse import M3Spec, SpladeSpec
from sie_server.models.spec import (
    CausalSpec,
    ClassifierSpec,
    EmbeddingSpec,
    LateInteractionSpec,
    PromptedClassifierSpec,
)
from sie_server.verify.cross_encoders import cross_encoder, flag_embedding
from sie_server.verify.prompted import causal
from sie_server.verify.references import CannotVerify, Reference, check_architecture
from sie_server.verify.vectors import dense, late_interaction, sparse

ENCODERS: dict[type, Reference] = {
    EmbeddingSpec: dense,
    M3Spec: dense,  # only FlagEmbedding has the other two outputs
    SpladeSpec: sparse,
    LateInteractionSpec: late_interaction,
}


def reference_of(directory: Path, engine: Engine) -> Reference:
    """Return the reference of a checkpoint.

    Raises:
        CannotVerify: no library supports this kind.
    """
    if (directory / "sie_scorer.json").exists():
        raise CannotVerify("this model's scorer is specific to this server; no reference library has it")
    head = engine.spec.head
    if isinstance(head, CausalSpec):
        return _prompted(engine, head)
    if isinstance(head, ClassifierSpec):
        if not head.modules:
            check_architecture(engine)
        return flag_embedding if head.truncation == "query-first" else cross_encoder
    if type(head) not in ENCODERS:
        raise _unsupported(engine)
    return ENCODERS[type(head)]


def _prompted(engine: Engine, head: CausalSpec) -> Reference:
    if type(head) not in (CausalSpec, PromptedClassifierSpec):
        raise _unsupported(engine)
    return cross_encoder if head.template.source == CHAT_TEMPLATE else causal


def _unsupported(engine: Engine) -> CannotVerify:
    return CannotVerify(
        f"no reference library supports {engine.spec.architecture} without code from its repository"
    )
