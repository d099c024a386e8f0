"""`SIERanker`: documents in order of relevance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from haystack import Document, component
from haystack.utils import Secret

from haystack_integrations.common.sie import API_KEY, Connected, text_of
from sie_sdk.texts import Ranked


@component
class SIERanker(Connected):
    """Sorts documents by relevance to the query.

    Returns copies of the documents with `score` set; with `options={"long_document": "chunk"}`, the characters of the
    best window of the ranked text are in `meta["relevance_chunk"]`.

    ```python
    from haystack import Document
    from haystack_integrations.components.rankers.sie import SIERanker

    ranker = SIERanker(model="sie/mini-en", base_url="http://localhost:8080", top_k=1)
    ranker.run(query="City in France", documents=[Document(content="Berlin"), Document(content="Paris")])
    ```
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: Secret | None = API_KEY,
        top_k: int | None = None,
        score_threshold: float | None = None,
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
        :param top_k: Number of documents to return; default: all.
        :param score_threshold: Documents with lower scores are omitted. The scale of scores depends on the model.
        :param meta_fields_to_embed: Meta fields whose values precede the content.
        :param embedding_separator: Separator of these values and the content.
        :param instruction: The instruction for models that support one.
        :param options: The options of each request, as documented by the server.
        :param timeout: Longest silence of the server in seconds; default: `SIE_TIMEOUT`, else 150.
        """
        self.model = model
        self.base_url = base_url
        self.api_key = api_key
        self.top_k = _checked(top_k)
        self.score_threshold = score_threshold
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator
        self.instruction = instruction
        self.options = options
        self.timeout = timeout

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, list[Document]]:
        """Ranks documents.

        :param query: The query.
        :param documents: The candidates; an empty list sends no request.
        :param top_k: Overrides the component's.
        :param score_threshold: Overrides the component's.
        :returns: `documents`, the most relevant first.
        :raises sie_sdk.SIEError: if the server returns no scores.
        """
        ranked = self._client().rank(self.model, query, self._texts(documents), **self._params())
        return {"documents": self._best(documents, ranked, top_k, score_threshold)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, list[Document]]:
        """Like `run`, without blocking the event loop."""
        ranked = await self._client().arank(self.model, query, self._texts(documents), **self._params())
        return {"documents": self._best(documents, ranked, top_k, score_threshold)}

    def _texts(self, documents: list[Document]) -> list[str]:
        return [text_of(one, self.meta_fields_to_embed, self.embedding_separator) for one in documents]

    def _params(self) -> dict[str, Any]:
        return {"instruction": self.instruction, "options": self.options}

    def _best(
        self, documents: list[Document], ranked: list[Ranked], top_k: int | None, threshold: float | None
    ) -> list[Document]:
        kept = ranked[: self.top_k if top_k is None else _checked(top_k)]
        lowest = self.score_threshold if threshold is None else threshold
        return [
            _scored(documents[one.position], one) for one in kept if lowest is None or one.score >= lowest
        ]


def _checked(top_k: int | None) -> int | None:
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be at least 1, or None for all documents")
    return top_k


def _scored(document: Document, place: Ranked) -> Document:
    chunk = {} if place.chunk is None else {"relevance_chunk": place.chunk}
    return replace(document, score=place.score, meta={**document.meta, **chunk})
