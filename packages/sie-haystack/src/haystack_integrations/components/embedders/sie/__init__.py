"""Haystack embedders for a SIE server."""

from haystack_integrations.components.embedders.sie.document_embedder import SIEDocumentEmbedder
from haystack_integrations.components.embedders.sie.text_embedder import SIETextEmbedder

__all__ = ["SIEDocumentEmbedder", "SIETextEmbedder"]
