"""`SIEEmbeddings`: dense vectors of texts."""

from __future__ import annotations

from typing import Any

from langchain_core.embeddings import Embeddings

from sie_langchain.connection import Connected


class SIEEmbeddings(Connected, Embeddings):
    """Dense vectors of documents and queries, for a vector store.

    Queries are read with `instruction`, or with the model's query prompt if it is None; documents with the document
    prompt. Raises `sie_sdk.SIEError`.
    """

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector for each text."""
        return self._client.embed(self.model, texts, **self._params(is_query=False))

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query."""
        return self._client.embed(self.model, [text], **self._params(is_query=True))[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Like `embed_documents`, without blocking the event loop."""
        return await self._client.aembed(self.model, texts, **self._params(is_query=False))

    async def aembed_query(self, text: str) -> list[float]:
        """Like `embed_query`, without blocking the event loop."""
        return (await self._client.aembed(self.model, [text], **self._params(is_query=True)))[0]

    def _params(self, *, is_query: bool) -> dict[str, Any]:
        instruction = self.instruction if is_query else None
        return {"is_query": is_query, "instruction": instruction, "options": self.options}
