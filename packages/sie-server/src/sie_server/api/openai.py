"""`POST /v1/embeddings` in OpenAI's shape: the body ↔ an encode request for dense vectors.

Reference: https://platform.openai.com/docs/api-reference/embeddings. Vectors are float32; `base64` is their
little-endian bytes, which is what the official Python client asks for and decodes.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import UNSET, Meta, Struct

from sie_server.errors import InvalidInput
from sie_server.wire import DenseVector, EncodeParams, EncodeRequest, EncodeResponse, Item


class EmbeddingsRequest(Struct, frozen=True):
    """`user` and keys that are not listed are ignored, as OpenAI ignores what it does not know."""

    model: str
    input: Annotated[Any, Meta(description="A text, or a list of texts")]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None


class Embedding(Struct, frozen=True):
    """One input's vector: a list of numbers, or base64."""

    embedding: Any
    index: int
    object: Literal["embedding"] = "embedding"


class EmbeddingsUsage(Struct, frozen=True):
    """Tokens put through the model."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(Struct, frozen=True):
    """OpenAI's list object."""

    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage
    object: Literal["list"] = "list"


def to_encode(body: EmbeddingsRequest) -> EncodeRequest:
    """The same request in our own words.

    Raises:
        InvalidInput: no texts, or token ids instead of texts.
    """
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not isinstance(texts, list) or not texts:
        raise InvalidInput("input must be a text or a list with at least one text - at `$.input`")
    for i, text in enumerate(texts):
        if isinstance(text, int | list):
            raise InvalidInput(
                "token ids are not taken, because they belong to one tokenizer; send text "
                f"(LangChain: check_embedding_ctx_length=False) - at `$.input[{i}]`"
            )
        if not isinstance(text, str):
            raise InvalidInput(f"input must hold texts, not {type(text).__name__} - at `$.input[{i}]`")
    options = None if body.dimensions is None else {"dimensions": body.dimensions}
    return EncodeRequest([Item(text=text) for text in texts], EncodeParams(["dense"], options=options))


def from_encode(body: EmbeddingsRequest, answer: EncodeResponse) -> EmbeddingsResponse:
    """Vectors in input order."""
    data = []
    for i, item in enumerate(answer.items):
        assert item.dense is not UNSET  # nothing else was asked for
        data.append(Embedding(_written(item.dense, body.encoding_format), i))
    tokens = answer.usage.input_tokens
    return EmbeddingsResponse(data, body.model, EmbeddingsUsage(tokens, tokens))


def in_these_words(error: InvalidInput) -> InvalidInput:
    """The same complaint with the paths of this body."""
    paths = {
        "$.params.options.dimensions": "$.dimensions",
        "$.items[": "$.input[",
        "`$.params.output_types`": "`$.model`",
    }
    message = error.message
    for ours, theirs in paths.items():
        message = message.replace(ours, theirs)
    return InvalidInput(message)


def _written(vector: DenseVector, encoding: str) -> Any:
    values = np.ascontiguousarray(vector.values, dtype="<f4")
    return base64.b64encode(values.tobytes()).decode() if encoding == "base64" else values.tolist()
