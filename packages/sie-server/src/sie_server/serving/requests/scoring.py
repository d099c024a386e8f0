"""What a score means: its type, which function is applied to it once, and how windows make a document's score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from sie_server.engine.job import Chunking, Job, M3Scoring
from sie_server.engine.kinds.listwise import listwise_scores
from sie_server.errors import InvalidInput
from sie_server.models.heads.sparse import M3Spec, ScoreMode
from sie_server.models.spec import Activation, LayerwiseSpec, ListwiseSpec, ModelSpec
from sie_server.wire import ChunkSpan, Options, ScoreType

# the weighted mean is named after its late-interaction part, as with the embedded model
M3_TYPES: dict[ScoreMode, ScoreType] = {
    "dense": "cosine",
    "sparse": "dot",
    "multivector": "maxsim",
    "weighted": "maxsim",
}


@dataclass(frozen=True)
class Scale:
    """The type of the scores of one answer, and the function that makes them of the raw values."""

    score_type: ScoreType
    activation: Activation


def scale_of(spec: ModelSpec, options: Options) -> Scale:
    """The checkpoint's own scale unless `normalize` asks for another; a raw value is never squashed twice.

    Raises:
        InvalidInput: a probability or a logit was asked of a model whose raw score is neither.
    """
    # a head whose raw result is a logit says which activation it was trained for
    own: Activation | None = getattr(spec.head, "activation", None)
    if isinstance(spec.head, M3Spec):
        _refuse_logit_options(options)
        return Scale(M3_TYPES[m3_scoring(options).mode], "identity")
    for name in ("score_mode", "score_weights"):
        if getattr(options, name) is not None:
            raise InvalidInput(f"this model has one way to score; leave {name} out - at `$.options.{name}`")
    if own is None:
        _refuse_logit_options(options)
        return Scale("cosine" if isinstance(spec.head, ListwiseSpec) else "maxsim", "identity")
    activation: Activation = {None: own, "none": "identity", "sigmoid": "sigmoid"}[options.normalize]
    return Scale("logit" if activation == "identity" else "probability", activation)


def cutoff_layer_of(spec: ModelSpec, options: Options) -> int | None:
    """The layer after which the score is read; None: the last.

    Raises:
        InvalidInput: the model has no head there, or a compression of tokens is asked for.
    """
    if options.compress_ratio not in (None, 1):
        raise InvalidInput(
            f"compress_ratio {options.compress_ratio} is not served, only 1: every token is kept "
            "- at `$.options.compress_ratio`"
        )
    layer = options.cutoff_layer
    if layer is None:
        return None
    if not isinstance(spec.head, LayerwiseSpec):
        raise InvalidInput("this model has one head; leave cutoff_layer out - at `$.options.cutoff_layer`")
    if layer not in spec.head.cutoff_layers:
        known = ", ".join(map(str, spec.head.cutoff_layers))
        raise InvalidInput(
            f"there is no head after layer {layer}; there is after {known} - at `$.options.cutoff_layer`"
        )
    return layer


def m3_scoring(options: Options) -> M3Scoring:
    """bge-m3's similarities as the caller wants them.

    Raises:
        InvalidInput: weights for a mode that has none, or that sum to 0.
    """
    mode, weights = options.score_mode or "weighted", options.score_weights
    if weights is None:
        return M3Scoring(mode)
    if mode != "weighted" or not 0 < sum(weights) < math.inf:
        raise InvalidInput(
            "score_weights needs score_mode 'weighted' and a finite sum above 0 - at `$.options.score_weights`"
        )
    return M3Scoring(mode, (weights[0], weights[1], weights[2]))


def _refuse_logit_options(options: Options) -> None:
    why = "this model's score is a similarity (score_type maxsim, cosine or dot), not a logit"
    if options.normalize == "sigmoid":
        raise InvalidInput(
            f"{why}: its sigmoid would be no probability; leave normalize out - at `$.options.normalize`"
        )
    if options.return_logits:
        raise InvalidInput(f"{why}; leave return_logits out - at `$.options.return_logits`")


def chunking_of(options: Options, most: int) -> Chunking | None:
    """How to split long documents; None: they are cut.

    Raises:
        InvalidInput: an option of chunking without chunking.
    """
    if options.long_document == "chunk":
        if options.max_document_tokens is not None:
            raise InvalidInput(
                "long_document 'chunk' reads whole documents; leave one out - at `$.options.max_document_tokens`"
            )
        return Chunking(options.chunk_overlap, most)
    for name in ("chunk_overlap", "aggregate"):
        if getattr(options, name) is not None:
            raise InvalidInput(f"{name} needs long_document 'chunk' - at `$.options.{name}`")
    return None


@dataclass(frozen=True)
class DocumentScores:
    """Raw values per document, which were cut, and each one's best window when they were split."""

    raw: Sequence[float]
    truncated: Sequence[bool]
    chunks: Sequence[ChunkSpan] | None = None


def per_document(job: Job, aggregate: str | None) -> DocumentScores:
    """Windows → documents: the best window's raw value, or (`mean`) the average of all; the span is the best's.

    Blocks → documents: the cosines of their vectors.
    """
    if job.blocks is not None:
        return DocumentScores(listwise_scores(job.results), job.truncated)
    if job.chunks is None:
        return DocumentScores(job.results, job.truncated)
    raw, truncated, spans = [], [], []
    for _, members in groupby(range(len(job.chunks)), key=lambda i: job.chunks[i].document):  # type: ignore[index]
        windows = list(members)
        values: list[float] = [job.results[i] for i in windows]
        broken = [value for value in values if not math.isfinite(value)]  # max() may pass over a NaN
        best = job.chunks[max(windows, key=lambda i: job.results[i])]  # the first of equals
        raw.append(
            sum(values) / len(values) if aggregate == "mean" else max(values) if not broken else broken[0]
        )
        truncated.append(job.truncated[windows[0]])
        spans.append(ChunkSpan(best.start, best.end, best.index, best.count))
    return DocumentScores(raw, truncated, spans)
