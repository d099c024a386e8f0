"""Kind of checkpoint → the parts its engine is made of: how texts become sequences, and hidden states results.

One row per head spec, found by its exact class. A new kind is a row here; `engine.engine` stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sie_server.engine.document_cache import ModelDocuments
from sie_server.engine.kinds.colbert import ColbertInput, ColbertReader
from sie_server.engine.kinds.embeddings import LogitReader, Reader, VectorReader
from sie_server.engine.kinds.listwise import ListwiseInput, ListwiseReader, ListwiseTokenizer
from sie_server.engine.kinds.prompted import PromptInput
from sie_server.engine.kinds.sparse import M3Reader, SpladeReader
from sie_server.engine.storage.weights import CheckpointWeights
from sie_server.engine.text.jobs import LateInteractionInput, PairInput, TextInput
from sie_server.engine.text.prompt_tokenizer import PromptTokenizer
from sie_server.engine.text.tokenizer import TextTokenizer
from sie_server.models.families.decoders.decoder import DecoderSpec
from sie_server.models.heads.late_interaction import TokenProjection
from sie_server.models.heads.listwise import Projector
from sie_server.models.heads.modular import ModuleStack
from sie_server.models.heads.sparse import M3_FILES, M3Head, M3Spec, SpladeHead, SpladeSpec
from sie_server.models.registry import build_classifier, build_layer_heads, build_token_logits
from sie_server.models.spec import (
    CausalSpec,
    ClassifierSpec,
    EmbeddingSpec,
    LateInteractionSpec,
    LayerwiseSpec,
    ListwiseSpec,
    ModelSpec,
    PromptedClassifierSpec,
)


@dataclass(frozen=True)
class Parts:
    """What an input is made of. `documents`: where token vectors are cached; `share_prefix`: see `engine.text.prefix`."""

    directory: Path
    spec: ModelSpec
    head: Any  # the spec's head, of the class its row stands under
    tokenizer: Any  # what the row's `tokenizer` made
    documents: ModelDocuments | None
    share_prefix: bool


@dataclass(frozen=True)
class Kind:
    """How to build the parts of one kind of checkpoint."""

    input: Callable[[Parts], TextInput]
    reader: Callable[[Parts, CheckpointWeights], Reader]
    tokenizer: Callable[[Path, ModelSpec], TextTokenizer] = lambda directory, spec: TextTokenizer(
        directory, token_types=spec.backbone.token_types
    )


def _prompt_tokenizer(directory: Path, spec: ModelSpec) -> TextTokenizer:
    assert isinstance(spec.head, CausalSpec)
    return PromptTokenizer(directory, spec.head.template)


def _colbert_tokenizer(directory: Path, spec: ModelSpec) -> TextTokenizer:
    assert isinstance(spec.head, LateInteractionSpec)
    return TextTokenizer(directory, token_types=spec.backbone.token_types, lower_case=spec.head.lower_case)


def _prompts(parts: Parts) -> TextInput:
    # what tokens make of the shared start depends on what comes after, unless they cannot see it
    causal = isinstance(parts.spec.backbone, DecoderSpec) and parts.spec.backbone.causal
    return PromptInput(parts.tokenizer, share=parts.share_prefix and causal)


def _embedding_tokenizer(directory: Path, spec: ModelSpec) -> TextTokenizer:
    assert isinstance(spec.head, EmbeddingSpec)
    tokenizer = TextTokenizer(directory, token_types=spec.backbone.token_types)
    if spec.head.pooling == "last":
        tokenizer.check_end(directory)
    return tokenizer


def _token_logits(parts: Parts, weights: CheckpointWeights) -> Reader:
    return LogitReader(build_token_logits(parts.spec, weights, parts.tokenizer.answers))


def _vectors(parts: Parts, weights: CheckpointWeights) -> Reader:
    head: EmbeddingSpec = parts.head
    table = None
    if head.dense_weight is not None:
        rows = parts.spec.backbone.vocab_size
        table = weights.at("scorer").take("token_weights", rows, dtype=torch.float32)
    return VectorReader(head, table, ModuleStack(head.modules, weights), parts.documents)


def _m3(parts: Parts, weights: CheckpointWeights) -> Reader:
    files = [weights.file(name) for name in M3_FILES]
    special = parts.tokenizer.ids_of(parts.head.special_tokens)
    return M3Reader(parts.head, M3Head(parts.spec.backbone.hidden_size, *files), special)


def _token_vectors(parts: Parts, weights: CheckpointWeights) -> Reader:
    head: LateInteractionSpec = parts.head
    own = [weights.folder(p.folder) if p.folder else weights for p in head.projections]
    project = TokenProjection(head.projections, own)
    return ColbertReader(project, parts.tokenizer, head.skip_words, parts.documents)


def _apart(parts: Parts) -> TextInput:
    return LateInteractionInput(parts.tokenizer, parts.documents)


KINDS: dict[type, Kind] = {
    ClassifierSpec: Kind(
        input=lambda parts: PairInput(parts.tokenizer),
        reader=lambda parts, weights: LogitReader(build_classifier(parts.spec, weights)),
    ),
    CausalSpec: Kind(
        input=_prompts,
        reader=_token_logits,
        tokenizer=_prompt_tokenizer,
    ),
    LayerwiseSpec: Kind(
        input=_prompts,
        reader=lambda parts, weights: LogitReader(build_layer_heads(parts.spec, weights)),
        tokenizer=_prompt_tokenizer,
    ),
    PromptedClassifierSpec: Kind(
        input=_prompts,
        reader=lambda parts, weights: LogitReader(build_classifier(parts.spec, weights)),
        tokenizer=_prompt_tokenizer,
    ),
    EmbeddingSpec: Kind(input=_apart, reader=_vectors, tokenizer=_embedding_tokenizer),
    M3Spec: Kind(input=_apart, reader=_m3),
    SpladeSpec: Kind(
        input=_apart,
        reader=lambda parts, weights: SpladeReader(SpladeHead(parts.head, parts.spec.backbone, weights)),
    ),
    LateInteractionSpec: Kind(
        tokenizer=_colbert_tokenizer,
        input=lambda parts: ColbertInput(parts.head, parts.tokenizer, parts.directory, parts.documents),
        reader=_token_vectors,
    ),
    ListwiseSpec: Kind(
        input=lambda parts: ListwiseInput(parts.head, parts.tokenizer),
        reader=lambda parts, weights: ListwiseReader(
            Projector(parts.spec.backbone.hidden_size, weights), parts.tokenizer.marks
        ),
        tokenizer=lambda directory, spec: ListwiseTokenizer(directory),
    ),
}
