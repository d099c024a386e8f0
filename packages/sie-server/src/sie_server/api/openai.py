"""`POST /v1/embeddings`: OpenAI's embeddings API on top of an encode request for dense vectors.

Reference: https://platform.openai.com/docs/api-reference/embeddings. Vectors are float32. `base64` encodes their
little-endian bytes; the official Python client requests and decodes that format.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import UNSET, Meta, Struct
from msgspec.structs import replace

from sie_server.errors import InvalidInput
from sie_server.wire import DenseVector, EncodeParams, EncodeRequest, EncodeResponse, Item
from sie_server.wire.limits import MAX_ITEMS


class EmbeddingsRequest(Struct, frozen=True):
    """Body of `POST /v1/embeddings`. `user` and unknown keys are ignored, as OpenAI does."""

    model: str
    input: Annotated[Any, Meta(description="A string or a list of strings")]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1)] | None = None
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


def to_encode(body: EmbeddingsRequest) -> tuple[EmbeddingsRequest, EncodeRequest]:
    """Return the body without its texts, and the encode request.

    Raises:
        InvalidInput: the input has no texts, or token ids instead of texts.
    """
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not isinstance(texts, list) or not texts:
        raise InvalidInput("expected a string or a list with at least one string - at `$.input`")
    if len(texts) > MAX_ITEMS:
        raise InvalidInput(f"{len(texts)} texts; send at most {MAX_ITEMS:,} per request - at `$.input`")
    for i, text in enumerate(texts):
        if isinstance(text, int | list):
            raise InvalidInput(
                "token ids are not supported because they belong to one tokenizer; send text "
                f"(LangChain: check_embedding_ctx_length=False) - at `$.input[{i}]`"
            )
        if not isinstance(text, str):
            raise InvalidInput(f"expected a string, got {type(text).__name__} - at `$.input[{i}]`")
    options = None if body.dimensions is None else {"dimensions": body.dimensions}
    encode = EncodeRequest([Item(text=text) for text in texts], EncodeParams(["dense"], options=options))
    return replace(body, input=None), encode


def from_encode(body: EmbeddingsRequest, answer: EncodeResponse) -> EmbeddingsResponse:
    """Convert from an encode response."""
    data = []
    for i, item in enumerate(answer.items):
        assert item.dense is not UNSET  # the only requested output
        data.append(Embedding(_written(item.dense, body.encoding_format), i))
    tokens = answer.usage.input_tokens
    return EmbeddingsResponse(data, body.model, EmbeddingsUsage(tokens, tokens))


def in_openai_terms(error: InvalidInput) -> InvalidInput:
    """Return the error with field paths of the embeddings body."""
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
