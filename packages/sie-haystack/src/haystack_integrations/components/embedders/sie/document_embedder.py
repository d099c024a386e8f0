"""`SIEDocumentEmbedder`: dense vectors of documents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from haystack import Document, component
from haystack.utils import Secret

from haystack_integrations.common.sie import API_KEY, Connected, text_of


@component
class SIEDocumentEmbedder(Connected):
    """Embeds documents, read with `instruction`, or with the model's document prompt if it is None.

    Returns copies of the documents with `embedding` set.

    ```python
    from haystack import Document
    from haystack_integrations.components.embedders.sie import SIEDocumentEmbedder

    embedder = SIEDocumentEmbedder(model="BAAI/bge-m3", base_url="http://localhost:8080")
    embedder.run(documents=[Document(content="Paris")])["documents"][0].embedding
    ```
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: Secret | None = API_KEY,
        prefix: str = "",
        suffix: str = "",
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        instruction: str | None = None,
        options: dict[str, Any] | None = None,
        timeout: float | None = None,
    ) -> None:
        """Creates the component; nothing is sent yet.

        :param model: The model's id on the server.
        :param base_url: URL of the server; default: `SIE_BASE_URL`, else http://localhost:8080.
        :param api_key: Sent as a bearer token.
        :param prefix: String before each text.
        :param suffix: String after each text.
        :param meta_fields_to_embed: Meta fields whose values precede the content.
        :param embedding_separator: Separator of these values and the content.
        :param instruction: Replaces the model's document prompt.
        :param options: The options of each request, as documented by the server.
        :param timeout: Longest silence of the server in seconds; default: `SIE_TIMEOUT`, else 150.
        """
        self.model = model
        self.base_url = base_url
        self.api_key = api_key
        self.prefix = prefix
        self.suffix = suffix
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator
        self.instruction = instruction
        self.options = options
        self.timeout = timeout

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embeds documents.

        :param documents: The documents; an empty list sends no request.
        :returns: `documents` in the same order, and `meta`, which names the model.
        :raises TypeError: if `documents` is not a list of documents.
        :raises sie_sdk.SIEError: if the server returns no vectors.
        """
        vectors = self._client().embed(self.model, self._texts(documents), **self._params())
        return {"documents": _embedded(documents, vectors), "meta": {"model": self.model}}

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """Like `run`, without blocking the event loop."""
        vectors = await self._client().aembed(self.model, self._texts(documents), **self._params())
        return {"documents": _embedded(documents, vectors), "meta": {"model": self.model}}

    def _texts(self, documents: list[Document]) -> list[str]:
        if not isinstance(documents, list) or not all(isinstance(one, Document) for one in documents):
            raise TypeError("SIEDocumentEmbedder takes a list of documents; use SIETextEmbedder for a string")
        fields, separator = self.meta_fields_to_embed, self.embedding_separator
        return [f"{self.prefix}{text_of(one, fields, separator)}{self.suffix}" for one in documents]

    def _params(self) -> dict[str, Any]:
        return {"is_query": False, "instruction": self.instruction, "options": self.options}


def _embedded(documents: list[Document], vectors: list[list[float]]) -> list[Document]:
    return [replace(one, embedding=vector) for one, vector in zip(documents, vectors, strict=True)]
