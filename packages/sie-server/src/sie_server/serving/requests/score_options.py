"""The options of a score request, checked against the model that serves it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from msgspec import structs

from sie_server.catalog import OTHER_SCORES, Calibration
from sie_server.engine.job import Chunking, M3Scoring
from sie_server.errors import InvalidInput
from sie_server.models.heads.sparse import M3Spec, ScoreMode
from sie_server.models.spec import Activation, LayerwiseSpec, ListwiseSpec, ModelSpec
from sie_server.serving.requests.options import ParsedOptions
from sie_server.wire import Options, ScoreType

# The weighted mean has the type of its late-interaction part, as the embedded model has.
M3_TYPES: dict[ScoreMode, ScoreType] = {
    "dense": "cosine",
    "sparse": "dot",
    "multivector": "maxsim",
    "weighted": "maxsim",
}


@dataclass(frozen=True)
class Scale:
    """The type of the scores of a response, and the function from raw values to scores."""

    score_type: ScoreType
    activation: Activation | Calibration


def scale_of(spec: ModelSpec, parsed: ParsedOptions) -> Scale:
    """Return the scale of the checkpoint unless `normalize` says otherwise. The activation is applied only once.

    Raises:
        InvalidInput: the request needs a probability or a logit, and the raw score of the model is neither, or the
            model has no calibration for these options.
    """
    options = parsed.known
    if options.normalize == "calibrated":
        calibration = _calibration_of(parsed)
        _uncalibrated(spec, structs.replace(options, normalize=None))  # checks the other options
        return Scale("probability", calibration)
    return _uncalibrated(spec, options)


def _calibration_of(parsed: ParsedOptions) -> Calibration:
    calibration = parsed.calibration
    if calibration is None:
        raise InvalidInput(
            "this model has no calibration; make one with `sie-server calibrate`, or omit normalize "
            "- at `$.options.normalize`"
        )
    if parsed.adapter is not None:
        raise InvalidInput(
            "the calibration is that of the model without an adapter; omit normalize or the adapter "
            "- at `$.options.normalize`"
        )
    for name in OTHER_SCORES:
        if getattr(parsed.known, name) != calibration.options.get(name):
            raise InvalidInput(
                f"the calibration was made with other scores; use the profile it was made for, or omit normalize or "
                f"{name} - at `$.options.{name}`"
            )
    return calibration


def _uncalibrated(spec: ModelSpec, options: Options) -> Scale:
    # A head whose raw result is a logit has the activation that it was trained for.
    own: Activation | None = getattr(spec.head, "activation", None)
    if isinstance(spec.head, M3Spec):
        _refuse_logit_options(options)
        return Scale(M3_TYPES[m3_scoring_of(options).mode], "identity")
    for name in ("score_mode", "score_weights"):
        if getattr(options, name) is not None:
            raise InvalidInput(f"this model has only one way to score; omit {name} - at `$.options.{name}`")
    if own is None:
        _refuse_logit_options(options)
        return Scale("cosine" if isinstance(spec.head, ListwiseSpec) else "maxsim", "identity")
    activations: dict[str | None, Activation] = {None: own, "none": "identity", "sigmoid": "sigmoid"}
    activation = activations[options.normalize]
    return Scale("logit" if activation == "identity" else "probability", activation)


def _refuse_logit_options(options: Options) -> None:
    reason = "the score of this model is a similarity (score_type maxsim, cosine or dot), not a logit"
    if options.normalize == "sigmoid":
        raise InvalidInput(
            f"{reason}, so its sigmoid is not a probability; omit normalize - at `$.options.normalize`"
        )
    if options.return_logits:
        raise InvalidInput(f"{reason}; omit return_logits - at `$.options.return_logits`")


def cutoff_layer_of(spec: ModelSpec, options: Options) -> int | None:
    """Return the layer after which the score is read; None: the last one.

    Raises:
        InvalidInput: the model has no head after that layer, or the request contains token compression.
    """
    if options.compress_ratio not in (None, 1):
        raise InvalidInput(
            f"compress_ratio {options.compress_ratio} is not supported; the only value is 1 "
            "- at `$.options.compress_ratio`"
        )
    layer = options.cutoff_layer
    if layer is None:
        return None
    if not isinstance(spec.head, LayerwiseSpec):
        raise InvalidInput("this model has only one head; omit cutoff_layer - at `$.options.cutoff_layer`")
    if layer not in spec.head.cutoff_layers:
        known = ", ".join(map(str, spec.head.cutoff_layers))
        raise InvalidInput(
            f"the model has no head after layer {layer}; it has heads after {known} - at `$.options.cutoff_layer`"
        )
    return layer


def m3_scoring_of(options: Options) -> M3Scoring:
    """Return which similarities of bge-m3 make the score.

    Raises:
        InvalidInput: weights for a mode without weights, or weights that sum to 0.
    """
    mode, weights = options.score_mode or "weighted", options.score_weights
    if weights is None:
        return M3Scoring(mode)
    if mode != "weighted" or not 0 < sum(weights) < math.inf:
        raise InvalidInput(
            "score_weights needs score_mode 'weighted' and a finite sum above 0 - at `$.options.score_weights`"
        )
    dense, sparse, multivector = weights
    return M3Scoring(mode, (dense, sparse, multivector))


def chunking_of(options: Options, most: int) -> Chunking | None:
    """Return how to split long documents, at most `most` chunks each; None: long documents are cut.

    Raises:
        InvalidInput: an option of chunking without chunking, or `max_document_tokens` with it.
    """
    if options.long_document == "chunk":
        if options.max_document_tokens is not None:
            raise InvalidInput(
                "long_document 'chunk' reads whole documents; omit one of the two - at `$.options.max_document_tokens`"
            )
        return Chunking(options.chunk_overlap, most)
    for name in ("chunk_overlap", "aggregate"):
        if getattr(options, name) is not None:
            raise InvalidInput(f"{name} needs long_document 'chunk' - at `$.options.{name}`")
    return None
