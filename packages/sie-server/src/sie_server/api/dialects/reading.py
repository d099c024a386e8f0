"""Fields that most dialects share: model, query, documents, number of results and truncation."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sie_server.api.dialects.dialect import Document, Json, RerankRequest
from sie_server.api.dialects.fields import Fields
from sie_server.errors import InvalidInput, cut
from sie_server.wire.limits import MAX_ITEMS

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
RankFields = Annotated[list[Annotated[str, Meta(max_length=200)]], Meta(max_length=100)]
DOCUMENTS = ("documents", "texts", "passages", "input")
TOP_N = ("top_n", "top_k")
RETURN = ("return_documents", "return_text", "return_input")
# fields of the vendors' objects for other media, and vLLM's for a list of parts
MEDIA = ("content", "image", "image_url", "video", "video_url", "audio", "audio_url", "input_audio")
MOST_QUERIES = 10_000  # different queries of a request; each has its own memory while it is scored
EXAMPLE = {"query": "what do stars burn?", "documents": ["Stars burn hydrogen.", "Rain falls."]}


def read_request(
    fields: Fields,
    documents: list[Document],
    *,
    queries: list[str] | None = None,
    truncate: bool = True,
    truncate_name: str = "truncate",
    zero_is_all: bool = False,
    **known: Any,
) -> RerankRequest:
    """Read the common fields and return the request; `known` are the fields already read."""
    model = fields.take(str, "model")
    queries = [_query(fields)] if queries is None else queries
    instruction = _instruction(fields)
    top_n = fields.take(NotNegative if zero_is_all else Positive, *TOP_N) or None
    returned = fields.take(bool, *RETURN)
    names = {
        "$.query.text": fields.at("query"),
        "$.items": fields.at("documents"),
        "$.instruction": fields.at("instruction"),
        "$.options.max_seq_length": "$.truncate_prompt_tokens",
        "$.options.": "$.",
        "long_document 'refuse'": f"`{truncate_name}`",
        "max_document_tokens": fields.spelled.get("max_tokens_per_doc", "max_document_tokens"),
    }
    return RerankRequest(
        model,
        queries,
        documents,
        instruction=instruction,
        top_n=top_n,
        return_documents=bool(returned),
        truncate=truncate,
        warnings=fields.warnings,
        names=names,
        **known,
    )


def _query(fields: Fields) -> str:
    """Read the query: a string or an object with `text`."""
    sent: Any = fields.need(object, "query")
    query = sent.get("text") if isinstance(sent, dict) else sent
    if not isinstance(query, str):
        raise InvalidInput(f"expected a string or an object with `text` - at `{fields.at('query')}`")
    return query


def _instruction(fields: Fields) -> str | None:
    """Read the instruction: vLLM's, llama.cpp's and Contextual's `instruction`, or SGLang's and DashScope's `instruct`.

    vLLM also takes it as a variable of the chat template. An empty one is none.

    Raises:
        InvalidInput: two places name different instructions.
    """
    given = fields.take(str, "instruction", "instruct")
    variables = fields.inside("chat_template_kwargs")
    inner = variables.take(str, "instruction")
    variables.finish(strict=False)
    fields.warnings += variables.warnings
    if inner and given and inner != given:
        raise InvalidInput(
            f"this instruction differs from {fields.at('instruction')}; send only one "
            f"- at `{variables.at('instruction')}`"
        )
    if inner and not given:
        fields.spelled["instruction"] = "chat_template_kwargs.instruction"
    return given or inner or None


def documents_of(fields: Fields, rank_fields: list[str] | None = None) -> list[Document]:
    """Read the documents: strings, or objects with `text` or the fields in `rank_fields`.

    Raises:
        InvalidInput: the list is empty, or a document has no text.
    """
    sent = fields.need(list[Any], *DOCUMENTS)
    name, path = fields.spelled["documents"], fields.at("documents")
    if not sent:
        raise InvalidInput(f"expected at least one document in {name} - at `{path}`")
    check_number(sent, name)
    return [_document(one, f"{path}[{i}]", rank_fields) for i, one in enumerate(sent)]


def check_number(texts: list[Any], name: str) -> None:
    """Raise InvalidInput if a field has too many texts."""
    if len(texts) > MAX_ITEMS:
        raise InvalidInput(
            f"{len(texts)} texts in {name}; send at most {MAX_ITEMS:,} per request - at `$.{name}`"
        )


def _document(sent: Any, path: str, rank_fields: list[str] | None) -> Document:
    if isinstance(sent, str):
        return Document(sent, sent)
    if not isinstance(sent, dict):
        raise InvalidInput(f"expected a string or an object with `text` - at `{path}`")
    if rank_fields and rank_fields != ["text"]:
        return Document(_joined(sent, path, rank_fields), sent)
    if not isinstance(sent.get("text"), str):
        raise InvalidInput(f"a document object needs a string in `text`{_hint(sent)} - at `{path}.text`")
    return Document(sent["text"], sent)


def _hint(sent: Json) -> str:
    """Return what to do about a document object without `text`."""
    medium = next((name for name in MEDIA if name in sent), None)
    if medium:
        return f"; this server reads text, not `{medium}`"
    return " (or list its fields in `rank_fields`)" if sent and "text" not in sent else ""


def _joined(sent: Json, path: str, rank_fields: list[str]) -> str:
    """Join fields to `name: value` lines in the order of `rank_fields`. Values that are not strings become JSON.

    If `rank_fields` has one name, return its value alone. Absent fields are skipped.
    """
    values = {
        name: sent[name] if isinstance(sent[name], str) else msgspec.json.encode(sent[name]).decode()
        for name in dict.fromkeys(rank_fields)
        if sent.get(name) is not None
    }
    if not values:
        raise InvalidInput(
            f"the document has none of the rank_fields {cut(', '.join(rank_fields))} - at `{path}`"
        )
    if len(rank_fields) == 1:
        return values[rank_fields[0]]
    return "\n".join(f"{name}: {value}" for name, value in values.items())


def as_text_object(document: Document) -> Json:
    """Return `{text}`, the form of a returned document in most dialects."""
    return {"text": document.text}


def usage(tokens: int) -> dict[str, int]:
    """Return the token count under both names that clients read."""
    return {"prompt_tokens": tokens, "total_tokens": tokens}
