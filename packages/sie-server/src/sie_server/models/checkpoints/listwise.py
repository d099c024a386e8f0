"""A listwise checkpoint (jina-reranker-v3 and v3.5) → `ModelSpec`: the lengths of queries, documents and blocks."""

from __future__ import annotations

from sie_server.models.families.decoders.decoder import DecoderSpec
from sie_server.models.spec import BackboneSpec, ListwiseSpec, ModelSpec

# (query, document) tokens, the defaults of the reference's `rerank`
LENGTHS = (512, 2048)  # v3
LENGTHS_WITH_WINDOWS = (1024, 8192)  # v3.5, whose layers have attention windows


def read_listwise(architecture: str, backbone: BackboneSpec, block_length: int) -> ModelSpec:
    """Return the spec of a listwise reranker; `block_length` limits documents and query of a prompt, in tokens."""
    assert isinstance(backbone, DecoderSpec)  # read by read_jina_ranking
    query, document = LENGTHS_WITH_WINDOWS if any(backbone.windows) else LENGTHS
    head = ListwiseSpec(query_length=min(query, block_length), block_length=block_length)
    return ModelSpec(architecture, backbone, head, min(document, block_length))
