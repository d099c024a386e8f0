"""LangChain components for a SIE server: a reranker and embeddings."""

from sie_langchain.embeddings import SIEEmbeddings
from sie_langchain.reranker import SIEReranker

__all__ = ["SIEEmbeddings", "SIEReranker"]
