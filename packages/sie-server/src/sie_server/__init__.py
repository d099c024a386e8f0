"""SIE server: puts query-document pairs through reranker models and answers in order of relevance."""

__version__ = "0.1.0"
