"""Client of SIE, a self-hosted inference engine for reranking.

    from sie_sdk import Item, SIEClient

    with SIEClient("http://localhost:8080") as client:
        result = client.score("BAAI/bge-reranker-v2-m3", Item(text="query"), [Item(text="document")])

Importing this package loads neither httpx nor numpy; they are imported on first use.
"""

from __future__ import annotations

from sie_sdk.client import SIEAsyncClient, SIEClient
from sie_sdk.errors import (
    AuthError,
    InferenceError,
    InputTooLongError,
    ModelLoadFailedError,
    ModelLoadingError,
    ModelNotFoundError,
    ProtocolError,
    QueueFullError,
    RateLimitedError,
    RequestError,
    ResourceExhaustedError,
    ServerError,
    SIEConnectionError,
    SIEError,
    SIETimeoutError,
)
from sie_sdk.scoring import maxsim, maxsim_batch
from sie_sdk.types import EncodeResult, Item, ModelInfo, ScoreEntry, ScoreResult, SparseVector, Usage
from sie_sdk.version import __version__

__all__ = [
    "AuthError",
    "EncodeResult",
    "InferenceError",
    "InputTooLongError",
    "Item",
    "ModelInfo",
    "ModelLoadFailedError",
    "ModelLoadingError",
    "ModelNotFoundError",
    "ProtocolError",
    "QueueFullError",
    "RateLimitedError",
    "RequestError",
    "ResourceExhaustedError",
    "SIEAsyncClient",
    "SIEClient",
    "SIEConnectionError",
    "SIEError",
    "SIETimeoutError",
    "ScoreEntry",
    "ScoreResult",
    "ServerError",
    "SparseVector",
    "Usage",
    "__version__",
    "maxsim",
    "maxsim_batch",
]
