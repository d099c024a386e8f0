"""Settings, connections and serialisation of the components, and the text of a document."""

from __future__ import annotations

import inspect
from typing import Any, Self

from haystack import Document, default_from_dict, default_to_dict
from haystack.utils import Secret

from sie_sdk.texts import TextClient

API_KEY = Secret.from_env_var("SIE_API_KEY", strict=False)


class Connected:
    """Base of the components. Each parameter of `__init__` is kept in an attribute of the same name."""

    base_url: str | None
    api_key: Secret | None
    timeout: float | None
    _text_client: TextClient | None = None

    def warm_up(self) -> None:
        """Resolves the key and checks the settings; connections open with the first request."""
        self._client()

    def close(self) -> None:
        """Closes the connections of `run`."""
        if self._text_client is not None:
            self._text_client.close()

    async def close_async(self) -> None:
        """Closes the connections of `run_async` in this event loop."""
        if self._text_client is not None:
            await self._text_client.aclose()

    def to_dict(self) -> dict[str, Any]:
        """Returns the component as a dictionary, with the source of the key instead of the key."""
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        saved: dict[str, Any] = default_to_dict(self, **{name: getattr(self, name) for name in names})
        return saved

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Creates a component from the dictionary of `to_dict`."""
        loaded: Self = default_from_dict(cls, data)
        return loaded

    def _client(self) -> TextClient:
        if self._text_client is None:
            key = self.api_key.resolve_value() if self.api_key else None
            self._text_client = TextClient(self.base_url, key, self.timeout)
        return self._text_client


def text_of(document: Document, meta_fields: list[str], separator: str) -> str:
    """Return the values of `meta_fields` and the content, joined. Raises ValueError if the document has none."""
    parts = [str(document.meta[name]) for name in meta_fields if document.meta.get(name) is not None]
    if document.content is None and not parts:
        raise ValueError(f"document {document.id} has no text: its content is None; SIE only reads text")
    return separator.join([*parts, document.content or ""])
