"""LlamaIndex components for a SIE server: a reranker and an embedding model."""

from sie_llamaindex.version import __version__  # isort: skip  # the check comes first
from sie_llamaindex.embedding import SIEEmbedding
from sie_llamaindex.postprocessor import SIENodePostprocessor

__all__ = ["SIEEmbedding", "SIENodePostprocessor", "__version__"]
