"""`SIEEmbeddings`: texts in, dense vectors out."""

from __future__ import annotations

from typing import Any

from langchain_core.embeddings import Embeddings

from sie_langchain.connection import Connected


class SIEEmbeddings(Connected, Embeddings):
    """Dense vectors of documents and queries, for a vector store.

    Queries are read with the model's query prompt, or with `instruction` in its place; documents with the document
    prompt. Raises `sie_sdk.SIEError`.
    """

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector per text, in order."""
        return self._client.embed(self.model, texts, **self._params(is_query=False))

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return self._client.embed(self.model, [text], **self._params(is_query=True))[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents`, without blocking the event loop."""
        return await self._client.aembed(self.model, texts, **self._params(is_query=False))

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query`, without blocking the event loop."""
        return (await self._client.aembed(self.model, [text], **self._params(is_query=True)))[0]

    def _params(self, *, is_query: bool) -> dict[str, Any]:
        instruction = self.instruction if is_query else None
        return {"is_query": is_query, "instruction": instruction, "options": self.options}
