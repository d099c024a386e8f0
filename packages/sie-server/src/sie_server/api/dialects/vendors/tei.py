"""text-embeddings-inference: /rerank, /embed and /info. Facts: its docs/openapi.json.

It serves one model and its bodies name none; here that is the first `--model`, and a body may name another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec import UNSET

from sie_server import __version__
from sie_server.api.dialects.dialect import Answer, Asked, Dialect, Json, marked_by
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.reading import Positive, asked, documents_of
from sie_server.errors import InvalidInput, SIEError
from sie_server.wire import EncodeParams, EncodeRequest, EncodeResponse, Item, ModelInfo


def _read(fields: Fields) -> Asked:
    documents = documents_of(fields)
    raw = bool(fields.take(bool, "raw_scores"))
    return asked(fields, documents, truncate=_truncate(fields), raw=raw)


def _truncate(fields: Fields) -> bool:
    """Not told, long texts are cut (as with TEI's auto_truncate) and reported."""
    truncate = fields.take(bool, "truncate") is not False
    direction = fields.take(str, "truncation_direction") or "right"
    if direction.lower() != "right" and truncate:
        raise InvalidInput("texts are cut at their end: send 'Right' - at `$.truncation_direction`")
    return truncate


def _write(answer: Answer) -> list[Json]:
    return [
        {"index": hit.index, "score": hit.score} | ({"text": hit.document.text} if hit.document else {})
        for hit in answer.hits
    ]


def _complain(error: SIEError) -> Json:
    return {"error": error.message, "error_type": _error_type(error.status)}


def _error_type(status: int) -> str:
    if status in (429, 503):
        return "Overloaded"
    return "Validation" if status < 500 else "Backend"


EXAMPLE = {"query": "what do stars burn?", "texts": ["Stars burn hydrogen.", "Rain falls."]}
TEI = Dialect("TEI", _read, _write, _complain, EXAMPLE, claims=marked_by("texts"))


# ── /embed and /info ──


def read_embed(fields: Fields) -> tuple[str | None, EncodeRequest, bool]:
    """Model, the request, and whether texts may be cut.

    Raises:
        InvalidInput
    """
    inputs: Any = fields.need(object, "inputs")
    texts = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InvalidInput("expected a text or a list with at least one text - at `$.inputs`")
    if fields.take(bool, "normalize") is False:
        raise InvalidInput("vectors are given in unit length only; leave it out - at `$.normalize`")
    fields.refuse("prompt_name", "the checkpoint's document prompt is used, no other; leave it out")
    dimensions = fields.take(Positive, "dimensions")
    model, truncate = fields.take(str, "model"), _truncate(fields)
    fields.finish(strict=False)
    options = {"dimensions": dimensions} if dimensions else None
    request = EncodeRequest([Item(text=text) for text in texts], EncodeParams(["dense"], options=options))
    return model, request, truncate


def write_embed(answer: EncodeResponse, truncate: bool) -> list[list[float]]:
    """One vector of unit length per text.

    Raises:
        InvalidInput: a text was cut that must not be.
    """
    vectors = []
    for i, item in enumerate(answer.items):
        if item.truncated is True and not truncate:
            raise InvalidInput(f"the text is longer than the model reads - at `$.inputs[{i}]`")
        assert item.dense is not UNSET  # nothing else was asked for
        vector = np.asarray(item.dense.values, dtype=np.float64)
        vectors.append((vector / (np.linalg.norm(vector) or 1.0)).astype(np.float32).tolist())
    return vectors


def embed_in_these_words(error: InvalidInput) -> InvalidInput:
    """The same complaint with the paths of this body."""
    message = error.message.replace("$.params.options.dimensions", "$.dimensions")
    return InvalidInput(message.replace("$.items[", "$.inputs[").replace("$.params.output_types", "$.model"))


def info(model: ModelInfo, config: Any) -> Json:
    """What is true of this server among the things TEI tells."""
    kind: Json = {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
    return {
        "model_id": model.name,
        "model_sha": model.revision,
        "model_dtype": config.dtype,
        "model_type": kind if "score" in model.outputs else {"embedding": {"pooling": "checkpoint"}},
        "max_input_length": model.max_sequence_length,
        "auto_truncate": True,
        "tokenization_workers": config.tokenizer_threads,
        "version": __version__,
    }
