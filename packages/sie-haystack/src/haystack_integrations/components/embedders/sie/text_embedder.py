"""`SIETextEmbedder`: a query in, its dense vector out."""

from __future__ import annotations

from typing import Any

from haystack import component
from haystack.utils import Secret

from haystack_integrations.common.sie import API_KEY, Connected


@component
class SIETextEmbedder(Connected):
    """Embeds a query: it is read with the model's query prompt, or with `instruction` in its place.

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
        :param base_url: Where the server is; default: `SIE_BASE_URL`, else http://localhost:8080.
        :param api_key: Sent as a bearer token.
        :param prefix: Put before the text.
        :param suffix: Put behind it.
        :param instruction: In place of the model's query prompt.
        :param options: Options of every request, as the server documents them.
        :param timeout: Seconds of silence of the server; default: `SIE_TIMEOUT`, else 150.
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
        :raises TypeError: for anything but a string.
        :raises sie_sdk.SIEError: when the server has no vector for it.
        """
        [vector] = self._client().embed(self.model, [self._read(text)], **self._params())
        return {"embedding": vector, "meta": {"model": self.model}}

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    async def run_async(self, text: str) -> dict[str, Any]:
        """`run`, without blocking the event loop."""
        [vector] = await self._client().aembed(self.model, [self._read(text)], **self._params())
        return {"embedding": vector, "meta": {"model": self.model}}

    def _read(self, text: str) -> str:
        if not isinstance(text, str):
            raise TypeError("SIETextEmbedder takes a string; SIEDocumentEmbedder is for documents")
        return f"{self.prefix}{text}{self.suffix}"

    def _params(self) -> dict[str, Any]:
        return {"is_query": True, "instruction": self.instruction, "options": self.options}
