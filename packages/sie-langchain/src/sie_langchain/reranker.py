"""`SIEReranker`: documents in order of relevance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import RunnableConfig, RunnableLambda
from pydantic import Field

from sie_langchain.connection import Connected
from sie_sdk.texts import Ranked


class SIEReranker(Connected, BaseDocumentCompressor):
    """Sorts documents by relevance, for a `ContextualCompressionRetriever` or on its own.

    Returns copies of the documents with the score in `metadata["relevance_score"]`, and with
    `options={"long_document": "chunk"}` the characters of the best window in `metadata["relevance_chunk"]`.
    For callbacks, each call is a run named `SIEReranker`. Raises `sie_sdk.SIEError`.
    """

    top_k: int | None = Field(default=None, ge=1)
    """Number of documents to return; default: all."""

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Return the `top_k` most relevant documents."""
        return self._run().invoke({"documents": documents, "query": query}, self._config(callbacks))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Like `compress_documents`, without blocking the event loop."""
        return await self._run().ainvoke({"documents": documents, "query": query}, self._config(callbacks))

    def _run(self) -> RunnableLambda[dict[str, Any], list[Document]]:
        """Return a runnable, for which LangChain reports start, end and errors to callbacks and tracers."""
        return RunnableLambda(self._rerank, self._arerank)

    def _config(self, callbacks: Callbacks) -> RunnableConfig:
        return {"callbacks": callbacks, "run_name": "SIEReranker", "metadata": {"sie_model": self.model}}

    def _rerank(self, inputs: dict[str, Any]) -> list[Document]:
        documents, query = inputs["documents"], inputs["query"]
        ranked = self._client.rank(self.model, query, _texts(documents), **self._params())
        return self._best(documents, ranked)

    async def _arerank(self, inputs: dict[str, Any]) -> list[Document]:
        documents, query = inputs["documents"], inputs["query"]
        ranked = await self._client.arank(self.model, query, _texts(documents), **self._params())
        return self._best(documents, ranked)

    def _params(self) -> dict[str, Any]:
        return {"instruction": self.instruction, "options": self.options}

    def _best(self, documents: Sequence[Document], ranked: list[Ranked]) -> list[Document]:
        return [_scored(documents[one.position], one) for one in ranked[: self.top_k]]


def _texts(documents: Sequence[Document]) -> list[str]:
    return [document.page_content for document in documents]


def _scored(document: Document, place: Ranked) -> Document:
    copy = document.model_copy(deep=True)
    copy.metadata["relevance_score"] = place.score
    if place.chunk is not None:
        copy.metadata["relevance_chunk"] = place.chunk
    return copy
