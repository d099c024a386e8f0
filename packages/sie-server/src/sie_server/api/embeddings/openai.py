"""`POST /v1/embeddings`: OpenAI's embeddings API, with the fields that servers and clients of its kind add.

Reference: https://platform.openai.com/docs/api-reference/embeddings. Vectors are float32. `base64` encodes their
little-endian bytes; the official Python client requests and decodes that format.
infinity has the same API at `/embeddings` (https://github.com/michaelfeil/infinity, its openapi.json).
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal, get_args

import numpy as np
from msgspec import UNSET, Meta, Struct

from sie_server.api.dialects.fields import Fields
from sie_server.api.embeddings.reading import Call, read_call, texts_of
from sie_server.errors import InvalidInput, shown
from sie_server.wire import DenseVector, EncodeResponse

Encoding = Literal["float", "base64"]


class EmbeddingsRequest(Struct, frozen=True):
    """Body of `POST /v1/embeddings`. Its fields are read one by one; others are refused or reported."""

    input: Annotated[Any, Meta(description="A string or a list of strings")]
    model: Annotated[str | None, Meta(description="Default: the first `--model` that encodes")] = None
    encoding_format: Encoding | None = None
    dimensions: Annotated[int | None, Meta(description="Zero and less: all")] = None
    input_type: Annotated[str | None, Meta(description="Side of the texts: query, document, …")] = None
    prompt_name: Annotated[str | None, Meta(description="Name of one of the checkpoint's prompts")] = None
    prompt: Annotated[str | None, Meta(description="Text before every text")] = None
    normalize: Annotated[bool | None, Meta(description="Scale vectors to length 1")] = None
    truncate: Annotated[bool | str | None, Meta(description="NONE or false: refuse long texts")] = None
    truncate_prompt_tokens: Annotated[int | None, Meta(description="Tokens per text; -1: the limit")] = None
    user: str | None = None


class Embedding(Struct, frozen=True):
    """The vector of one text: a list of numbers or a base64 string."""

    embedding: Any
    index: int
    object: Literal["embedding"] = "embedding"


class EmbeddingsUsage(Struct, frozen=True):
    """Number of tokens of all texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(Struct, frozen=True):
    """OpenAI's list of vectors, in input order."""

    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage
    object: Literal["list"] = "list"


def embeddings(fields: Fields) -> Call:
    """Read a body.

    Raises:
        InvalidInput
    """
    texts = texts_of(fields.need(object, "input"), "input")
    encoding = fields.take(str, "encoding_format") or "float"  # forms of low-code clients leave it empty
    if encoding not in get_args(Encoding):
        raise InvalidInput(
            f"unknown value {shown(encoding)}; send float or base64 - at `{fields.at('encoding_format')}`"
        )
    return read_call(fields, texts, "input", lambda answer: write(answer, encoding))


def write(answer: EncodeResponse, encoding: str) -> EmbeddingsResponse:
    """Convert from an encode response."""
    data = []
    for i, item in enumerate(answer.items):
        assert item.dense is not UNSET  # the only requested output
        data.append(Embedding(_written(item.dense, encoding), i))
    tokens = answer.usage.input_tokens
    return EmbeddingsResponse(data, answer.model, EmbeddingsUsage(tokens, tokens))


def _written(vector: DenseVector, encoding: str) -> Any:
    values = np.ascontiguousarray(vector.values, dtype="<f4")
    return base64.b64encode(values.tobytes()).decode() if encoding == "base64" else values.tolist()
