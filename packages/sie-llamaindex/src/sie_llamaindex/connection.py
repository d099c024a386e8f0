"""Settings shared by the reranker and the embedding model."""

from __future__ import annotations

from typing import Any

from llama_index.core.bridge.pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr

from sie_sdk.texts import TextClient


class Connected(BaseModel):
    """Base of the components: the settings and the client. `to_dict` omits the key; loading reads SIE_API_KEY."""

    model_config = ConfigDict(extra="forbid")

    base_url: str | None = Field(
        default=None, description="URL of the server; default: SIE_BASE_URL, else http://localhost:8080."
    )
    api_key: SecretStr | None = Field(
        default=None, exclude=True, description="Sent as a bearer token; default: SIE_API_KEY."
    )
    timeout: float | None = Field(
        default=None, description="Longest silence of the server in seconds; default: SIE_TIMEOUT, else 150."
    )
    instruction: str | None = Field(
        default=None,
        description="The instruction for models that support one; embeddings use it for queries.",
    )
    options: dict[str, Any] | None = Field(
        default=None, description="The options of each request, as documented by the server."
    )

    _client: TextClient = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        key = None if self.api_key is None else self.api_key.get_secret_value()
        self._client = TextClient(self.base_url, key, self.timeout)
