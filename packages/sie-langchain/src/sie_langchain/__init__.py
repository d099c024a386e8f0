"""LangChain components for a SIE server: a reranker and embeddings."""

from sie_langchain.version import __version__  # isort: skip  # the check comes first
from sie_langchain.embeddings import SIEEmbeddings
from sie_langchain.reranker import SIEReranker

__all__ = ["SIEEmbeddings", "SIEReranker", "__version__"]
