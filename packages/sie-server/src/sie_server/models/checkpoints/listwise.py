"""A listwise checkpoint (jina-reranker-v3 and v3.5) → `ModelSpec`: the lengths of queries, documents and blocks."""

from __future__ import annotations

from sie_server.models.families.decoders.decoder import DecoderSpec
from sie_server.models.spec import BackboneSpec, ListwiseSpec, ModelSpec

# (query, document) tokens, the defaults of the reference's `rerank`: of v3, and of v3.5, whose layers have windows
LENGTHS, LENGTHS_WITH_WINDOWS = (512, 2048), (1024, 8192)


def read_listwise(architecture: str, backbone: BackboneSpec, block_length: int) -> ModelSpec:
    """The spec of a listwise reranker; `block_length` (tokens) is what documents and query of a prompt may take."""
    assert isinstance(backbone, DecoderSpec)  # what read_jina_ranking made
    query, document = LENGTHS_WITH_WINDOWS if any(backbone.windows) else LENGTHS
    head = ListwiseSpec(query_length=min(query, block_length), block_length=block_length)
    return ModelSpec(architecture, backbone, head, min(document, block_length))
