"""What most dialects' bodies have in common: a model, a query, documents, how many to return and whether to cut."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sie_server.api.dialects.dialect import Asked, Document, Json
from sie_server.api.dialects.fields import Fields
from sie_server.errors import InvalidInput

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
DOCUMENTS = ("documents", "texts", "passages")
TOP_N = ("top_n", "top_k")
RETURN = ("return_documents", "return_text")
EXAMPLE = {"query": "what do stars burn?", "documents": ["Stars burn hydrogen.", "Rain falls."]}


def asked(
    fields: Fields,
    documents: list[Document],
    *,
    query: str | None = None,
    truncate: bool = True,
    truncate_name: str = "truncate",
    zero_is_all: bool = False,
    **known: Any,
) -> Asked:
    """What is left to read of any body: model, query, how many, with documents or without."""
    model = fields.take(str, "model")
    query = _query(fields) if query is None else query
    top_n = fields.take(NotNegative if zero_is_all else Positive, *TOP_N) or None
    returned = fields.take(bool, *RETURN)
    names = {
        "$.query.text": f"$.{fields.spelled['query']}",
        "$.items": f"$.{fields.spelled['documents']}",
        "$.options.max_seq_length": "$.truncate_prompt_tokens",
        "$.options.": "$.",
        "long_document 'refuse'": f"`{truncate_name}`",
        "max_document_tokens": fields.spelled.get("max_tokens_per_doc", "max_document_tokens"),
    }
    return Asked(
        model,
        query,
        documents,
        top_n=top_n,
        return_documents=bool(returned),
        truncate=truncate,
        warnings=fields.warnings,
        names=names,
        **known,
    )


def _query(fields: Fields) -> str:
    """A text, or an object with one."""
    sent: Any = fields.need(object, "query")
    query = sent.get("text") if isinstance(sent, dict) else sent
    if not isinstance(query, str):
        raise InvalidInput("expected a text or an object with `text` - at `$.query`")
    return query


def documents_of(fields: Fields, rank_fields: list[str] | None = None) -> list[Document]:
    """Strings, or objects with a `text` (or the fields that `rank_fields` names).

    Raises:
        InvalidInput: none, or one without text.
    """
    sent = fields.need(list[Any], *DOCUMENTS)
    name = fields.spelled["documents"]
    if not sent:
        raise InvalidInput(f"{name} must hold at least one document - at `$.{name}`")
    return [_document(one, f"$.{name}[{i}]", rank_fields) for i, one in enumerate(sent)]


def _document(sent: Any, path: str, rank_fields: list[str] | None) -> Document:
    if isinstance(sent, str):
        return Document(sent, sent)
    if not isinstance(sent, dict):
        raise InvalidInput(f"expected a text or an object with `text` - at `{path}`")
    if rank_fields and rank_fields != ["text"]:
        return Document(_joined(sent, path, rank_fields), sent)
    if not isinstance(sent.get("text"), str):
        hint = " (or name its fields in `rank_fields`)" if sent and "text" not in sent else ""
        raise InvalidInput(f"a document object needs a text under `text`{hint} - at `{path}.text`")
    return Document(sent["text"], sent)


def _joined(sent: Json, path: str, rank_fields: list[str]) -> str:
    """`name: value` lines in the order of `rank_fields`, which is YAML for plain values; others are written as JSON.

    One field alone is its value. A document need not have every field.
    """
    values = {
        name: sent[name] if isinstance(sent[name], str) else msgspec.json.encode(sent[name]).decode()
        for name in rank_fields
        if sent.get(name) is not None
    }
    if not values:
        raise InvalidInput(f"the document has none of the rank_fields {', '.join(rank_fields)} - at `{path}`")
    if len(rank_fields) == 1:
        return values[rank_fields[0]]
    return "\n".join(f"{name}: {value}" for name, value in values.items())


def as_text_object(document: Document) -> Json:
    """`{text}`, as most dialects give a document back."""
    return {"text": document.text}


def usage(tokens: int) -> dict[str, int]:
    """Tokens read, under both names that clients look for."""
    return {"prompt_tokens": tokens, "total_tokens": tokens}
