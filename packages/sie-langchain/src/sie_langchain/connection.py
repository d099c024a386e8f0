"""Settings shared by the reranker and the embeddings."""

from __future__ import annotations

from typing import Any

from langchain_core.load.serializable import Serializable
from langchain_core.utils import secret_from_env
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr

from sie_sdk.texts import TextClient


class Connected(Serializable):
    """Base of the components: the settings and the client. `langchain_core.load.dumps` saves it without the key."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1)
    """The model's id on the server."""
    base_url: str | None = None
    """URL of the server; default: `SIE_BASE_URL`, else http://localhost:8080."""
    api_key: SecretStr | None = Field(default_factory=secret_from_env("SIE_API_KEY", default=None))
    """Sent as a bearer token; default: `SIE_API_KEY`."""
    timeout: float | None = None
    """Longest silence of the server in seconds; default: `SIE_TIMEOUT`, else 150."""
    instruction: str | None = None
    """The instruction for models that support one; embeddings use it for queries."""
    options: dict[str, Any] | None = None
    """The options of each request, as documented by the server."""

    _client: TextClient = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        key = None if self.api_key is None else self.api_key.get_secret_value()
        self._client = TextClient(self.base_url, key, self.timeout)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        return {"api_key": "SIE_API_KEY"}
