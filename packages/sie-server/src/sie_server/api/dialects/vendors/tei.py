"""/rerank, /embed and /info of text-embeddings-inference (TEI). Source: its docs/openapi.json.

TEI serves one model, which its bodies do not name. Here that is the first `--model`; a body may contain `model`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec import UNSET

from sie_server import __version__
from sie_server.api.dialects.dialect import Answer, Dialect, Json, RerankRequest, marked_by
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.reading import Positive, check_number, documents_of, read_request
from sie_server.errors import InvalidInput, SIEError
from sie_server.wire import EncodeParams, EncodeRequest, EncodeResponse, Item, ModelInfo


def _read(fields: Fields) -> RerankRequest:
    documents = documents_of(fields)
    raw = bool(fields.take(bool, "raw_scores"))
    return read_request(fields, documents, truncate=_truncate(fields), raw=raw)


def _truncate(fields: Fields) -> bool:
    """Read `truncate`. By default long texts are truncated, as with TEI's auto_truncate, and reported."""
    truncate = fields.take(bool, "truncate") is not False
    direction = fields.take(str, "truncation_direction") or "right"
    if direction.lower() != "right" and truncate:
        raise InvalidInput("texts are truncated only at the end; send 'Right' - at `$.truncation_direction`")
    return truncate


def _write(answer: Answer) -> list[Json]:
    return [
        {"index": hit.index, "score": hit.score} | ({"text": hit.document.text} if hit.document else {})
        for hit in answer.hits
    ]


def _write_error(error: SIEError) -> Json:
    return {"error": error.message, "error_type": _error_type(error.status)}


def _error_type(status: int) -> str:
    if status in (429, 503):
        return "Overloaded"
    return "Validation" if status < 500 else "Backend"


EXAMPLE = {"query": "what do stars burn?", "texts": ["Stars burn hydrogen.", "Rain falls."]}
TEI = Dialect("TEI", _read, _write, _write_error, EXAMPLE, claims=marked_by("texts"))


# ── /embed and /info ──


def read_embed(fields: Fields) -> tuple[str | None, EncodeRequest, bool]:
    """Read a body of /embed: the model, the encode request, and whether texts may be truncated.

    Raises:
        InvalidInput
    """
    inputs: Any = fields.need(object, "inputs")
    texts = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InvalidInput("expected a string or a list with at least one string - at `$.inputs`")
    check_number(texts, "inputs")
    if fields.take(bool, "normalize") is False:
        raise InvalidInput("only vectors of unit length are returned; omit this field - at `$.normalize`")
    fields.refuse("prompt_name", "only the checkpoint's document prompt is supported; omit this field")
    dimensions = fields.take(Positive, "dimensions")
    model, truncate = fields.take(str, "model"), _truncate(fields)
    fields.finish(strict=False)
    options = {"dimensions": dimensions} if dimensions else None
    request = EncodeRequest([Item(text=text) for text in texts], EncodeParams(["dense"], options=options))
    return model, request, truncate


def write_embed(answer: EncodeResponse, truncate: bool) -> list[list[float]]:
    """Return one vector of unit length per text.

    Raises:
        InvalidInput: a text was truncated and `truncate` is False.
    """
    vectors = []
    for i, item in enumerate(answer.items):
        if item.truncated is True and not truncate:
            raise InvalidInput(f"the text is longer than the model's limit - at `$.inputs[{i}]`")
        assert item.dense is not UNSET  # the only requested output
        vector = np.asarray(item.dense.values, dtype=np.float64)
        vectors.append((vector / (np.linalg.norm(vector) or 1.0)).astype(np.float32).tolist())
    return vectors


def embed_in_callers_terms(error: InvalidInput) -> InvalidInput:
    """Return the error with field paths of the /embed body."""
    message = error.message.replace("$.params.options.dimensions", "$.dimensions")
    return InvalidInput(message.replace("$.items[", "$.inputs[").replace("$.params.output_types", "$.model"))


def info(model: ModelInfo, config: Any) -> Json:
    """Return those fields of TEI's /info that apply to this server."""
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
