"""Cohere's rerank API, v2 and v1, and its form on Amazon Bedrock.

Sources: docs.cohere.com/reference/rerank, the client library `cohere` 5, and docs.aws.amazon.com/bedrock (InvokeModel).
v2 accepts texts and rejects unknown fields; v1 also accepts objects and `rank_fields`. Bedrock has the model in its
path. A search unit is a query with up to 100 documents.
"""

from __future__ import annotations

import math
from typing import Literal

from sie_server.api.dialects.dialect import Answer, Dialect, Document, Json, RerankRequest, marked_by
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.reading import (
    EXAMPLE,
    Positive,
    RankFields,
    as_text_object,
    documents_of,
    read_request,
)
from sie_server.errors import SIEError

DOCUMENTS_PER_UNIT = 100
NO_CHUNKS = "documents are not split; each is read up to the model's limit"


def _read_v2(fields: Fields) -> RerankRequest:
    documents = documents_of(fields)
    most = fields.take(Positive, "max_tokens_per_doc")
    fields.has_no_effect("priority", "requests are scheduled by arrival and size")
    return read_request(fields, documents, max_document_tokens=most)


def no_effect_on_answers(fields: Fields) -> None:
    """Take the fields of Xinference's clients: every answer counts tokens, and `kwargs` repeats other fields."""
    fields.is_met("return_len", "kwargs")


def _read_v1(fields: Fields) -> RerankRequest:
    documents = documents_of(fields, fields.take(RankFields, "rank_fields"))
    most = fields.take(Positive, "max_tokens_per_doc")
    fields.has_no_effect("max_chunks_per_doc", NO_CHUNKS)
    no_effect_on_answers(fields)
    return read_request(fields, documents, max_document_tokens=most)


def _read_bedrock(fields: Fields) -> RerankRequest:
    fields.refuse("model", "the path names the model; omit this field")
    fields.take(Literal[1, 2], "api_version")  # the answers of both are alike
    return _read_v1(fields)


def as_sent(document: Document) -> Json:
    """Return a document object with all its fields, as v1 does; `text` is always present."""
    return {"text": document.text} | (document.sent if isinstance(document.sent, dict) else {})


def meta(answer: Answer, version: str) -> Json:
    """Return the usage in Cohere's search units and in tokens."""
    units = math.ceil(len(answer.request.documents) / DOCUMENTS_PER_UNIT)
    written: Json = {
        "api_version": {"version": version},
        "billed_units": {"search_units": units},
        "tokens": {"input_tokens": answer.tokens, "output_tokens": 0},  # Xinference's clients need both
    }
    return written | ({"warnings": answer.warnings} if answer.warnings else {})


def _write_v2(answer: Answer) -> Json:
    return {"id": answer.id, "results": answer.results(as_text_object), "meta": meta(answer, "2")}


def _write_v1(answer: Answer) -> Json:
    return {"id": answer.id, "results": answer.results(as_sent), "meta": meta(answer, "1")}


def _write_bedrock(answer: Answer) -> Json:
    return {"results": answer.results(as_sent)}


def _write_error(error: SIEError) -> Json:
    return {"message": error.message}


def _write_v1_error(error: SIEError) -> Json:
    """Write an error with the key that Xinference's client reads in addition to Cohere's."""
    return {"message": error.message, "detail": error.message}


COHERE_V2 = Dialect("Cohere v2", _read_v2, _write_v2, _write_error, EXAMPLE, strict=True)
COHERE_V1 = Dialect(
    "Cohere v1",
    _read_v1,
    _write_v1,
    _write_v1_error,
    EXAMPLE,
    claims=marked_by("rank_fields", "max_chunks_per_doc"),
)
BEDROCK = Dialect("Cohere on Bedrock", _read_bedrock, _write_bedrock, _write_error, EXAMPLE)
