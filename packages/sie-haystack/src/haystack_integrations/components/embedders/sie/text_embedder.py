"""`SIETextEmbedder`: the dense vector of a query."""

from __future__ import annotations

from typing import Any

from haystack import component
from haystack.utils import Secret

from haystack_integrations.common.sie import API_KEY, Connected


@component
class SIETextEmbedder(Connected):
    """Embeds a query, read with `instruction`, or with the model's query prompt if it is None.

    ```python
    from haystack_integrations.components.embedders.sie import SIETextEmbedder

    embedder = SIETextEmbedder(model="BAAI/bge-m3", base_url="http://localhost:8080")
    embedder.run(text="City in France")["embedding"]
    ```
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: Secret | None = API_KEY,
        prefix: str = "",
        suffix: str = "",
        instruction: str | None = None,
        options: dict[str, Any] | None = None,
        timeout: float | None = None,
    ) -> None:
        """Creates the component; nothing is sent yet.

        :param model: The model's id on the server.
        :param base_url: URL of the server; default: `SIE_BASE_URL`, else http://localhost:8080.
        :param api_key: Sent as a bearer token.
        :param prefix: String before the text.
        :param suffix: String after the text.
        :param instruction: Replaces the model's query prompt.
        :param options: The options of each request, as documented by the server.
        :param timeout: Longest silence of the server in seconds; default: `SIE_TIMEOUT`, else 150.
        """
        self.model = model
        self.base_url = base_url
        self.api_key = api_key
        self.prefix = prefix
        self.suffix = suffix
        self.instruction = instruction
        self.options = options
        self.timeout = timeout

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    def run(self, text: str) -> dict[str, Any]:
        """Embeds one text.

        :param text: The query.
        :returns: `embedding` and `meta`, which names the model.
        :raises TypeError: if `text` is not a string.
        :raises sie_sdk.SIEError: if the server returns no vector.
        """
        [vector] = self._client().embed(self.model, [self._read(text)], **self._params())
        return {"embedding": vector, "meta": {"model": self.model}}

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    async def run_async(self, text: str) -> dict[str, Any]:
        """Like `run`, without blocking the event loop."""
        [vector] = await self._client().aembed(self.model, [self._read(text)], **self._params())
        return {"embedding": vector, "meta": {"model": self.model}}

    def _read(self, text: str) -> str:
        if not isinstance(text, str):
            raise TypeError("SIETextEmbedder takes a string; use SIEDocumentEmbedder for documents")
        return f"{self.prefix}{text}{self.suffix}"

    def _params(self) -> dict[str, Any]:
        return {"is_query": True, "instruction": self.instruction, "options": self.options}
