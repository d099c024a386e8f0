"""`SIEEmbedding`: dense vectors of texts."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import ConfigDict, Field

from sie_llamaindex.connection import Connected


class SIEEmbedding(Connected, BaseEmbedding):
    """Dense vectors of texts and queries, for an index. `model` is the model's id on the server.

    Queries are read with `instruction`, or with the model's query prompt if it is None; texts with the document
    prompt. Raises `sie_sdk.SIEError`.
    """

    model_config = ConfigDict(populate_by_name=True)  # to_dict writes `model_name`, LlamaIndex's usual name

    model_name: str = Field(alias="model", min_length=1, description="The model's id on the server.")
    embed_batch_size: int = Field(default=128, gt=0, le=2048, description="Number of texts in a request.")

    @classmethod
    def class_name(cls) -> str:
        return "SIEEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._client.embed(self.model_name, [query], **self._params(is_query=True))[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return (await self._client.aembed(self.model_name, [query], **self._params(is_query=True)))[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._client.embed(self.model_name, texts, **self._params(is_query=False))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await self._client.aembed(self.model_name, texts, **self._params(is_query=False))

    def _params(self, *, is_query: bool) -> dict[str, Any]:
        instruction = self.instruction if is_query else None
        return {"is_query": is_query, "instruction": instruction, "options": self.options}
