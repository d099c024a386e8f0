"""/embed, /embed_sparse, /similarity and /info of text-embeddings-inference (TEI). Source: its docs/openapi.json.

TEI serves one model, which its bodies do not name. Here that is the first `--model` that fits; a body may contain
`model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET

from sie_server import __version__
from sie_server.api.dialects.dialect import Json
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.vendors.tei import LABEL
from sie_server.api.embeddings.reading import Call, read_call, texts_of
from sie_server.config import ServerConfig
from sie_server.errors import InvalidInput
from sie_server.wire import EncodedItem, EncodeResponse, ModelInfo

POOLINGS = {"last": "last_token"}
CLIENT_BATCH = 256  # texts that a client should send per request; many more are accepted
INPUTS = {"inputs": ["Stars burn hydrogen."]}
EXAMPLES = {
    "/embed": INPUTS,
    "/embed_sparse": INPUTS,
    "/embed_all": INPUTS,
    "/tokenize": INPUTS,
    "/decode": {"ids": [101, 102]},
    "/similarity": {
        "inputs": {"source_sentence": "What do stars burn?", "sentences": ["Stars burn hydrogen."]}
    },
}


def embed(fields: Fields) -> Call:
    """Read a body of /embed. Vectors have length 1 unless `normalize` is false."""
    texts = texts_of(fields.need(object, "inputs"), "inputs")
    return read_call(fields, texts, "inputs", _vectors, normalize=True)


def embed_sparse(fields: Fields) -> Call:
    """Read a body of /embed_sparse."""
    texts = texts_of(fields.need(object, "inputs"), "inputs")
    return read_call(fields, texts, "inputs", _entries, output="sparse")


def similarity(fields: Fields) -> Call:
    """Read a body of /similarity: a sentence, and those that are compared with it."""
    inner = Fields(fields.need(dict[str, msgspec.Raw], "inputs"), "$.inputs")
    sentence, sentences = inner.need(str, "source_sentence"), inner.need(list[Any], "sentences")
    inner.finish(strict=False)
    fields.warnings += inner.warnings
    where = "inputs.sentences"
    return read_call(
        fields, [sentence, *texts_of(sentences, where)], where, _similarities, normalize=True, before=1
    )


def _dense(item: EncodedItem) -> np.ndarray[Any, Any]:
    assert item.dense is not UNSET  # the only requested output
    return np.asarray(item.dense.values)


def _vectors(answer: EncodeResponse) -> list[list[float]]:
    return [_dense(item).tolist() for item in answer.items]


def _entries(answer: EncodeResponse) -> list[list[Json]]:
    lists = []
    for item in answer.items:
        assert item.sparse is not UNSET  # the only requested output
        pairs = zip(item.sparse.indices, item.sparse.values, strict=True)
        lists.append([{"index": int(index), "value": float(value)} for index, value in pairs])
    return lists


def _similarities(answer: EncodeResponse) -> list[float]:
    first, *others = (_dense(item).astype(np.float64) for item in answer.items)
    return [float(first @ other) for other in others]


def info(model: ModelInfo, pooling: Sequence[str] | None, config: ServerConfig) -> Json:
    """Return TEI's /info. A limit that this server does not have is null."""
    kind: Json = {"embedding": {"pooling": _pooling(pooling)}}
    if "score" in model.outputs:
        kind = {"reranker": {"id2label": {"0": LABEL}, "label2id": {LABEL: 0}}}
    return {
        "model_id": model.name,
        "model_sha": model.revision,
        "model_dtype": config.dtype,
        "model_type": kind,
        "max_concurrent_requests": config.max_connections,
        "max_input_length": model.max_sequence_length,
        "max_batch_tokens": config.batch_tokens or None,
        "max_batch_requests": None,
        "max_client_batch_size": CLIENT_BATCH,
        "auto_truncate": True,
        "tokenization_workers": config.tokenizer_threads,
        "version": __version__,
        "sha": None,
        "docker_label": None,
    }


def _pooling(names: Sequence[str] | None) -> str:
    """Return the pooling in TEI's words; other poolings than TEI's have their own name."""
    return "splade" if names is None else "+".join(POOLINGS.get(name, name) for name in names)


def embed_all(fields: Fields) -> Call:
    """Refuse a body of /embed_all, whose result is the last hidden state of every token."""
    raise InvalidInput(
        "hidden states of single tokens are not returned; for the token vectors of a model that has them use "
        "/v1/encode with output_types ['multivector'] - at `$`"
    )
