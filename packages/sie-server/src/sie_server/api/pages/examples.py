"""Bodies that the page /docs offers for each route. With the models that are served, Execute answers them with 200.

Two routes are exceptions, because no address is right on every server: the sources of `swap` and of an adapter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sie_server.config import DEFAULT_MODEL
from sie_server.wire import ModelInfo

Json = dict[str, Any]
QUERY, TEXTS = "What do stars burn?", ["Rain falls over the harbour.", "Stars burn hydrogen into helium."]
SCORE: Json = {"query": {"text": QUERY}, "items": [{"text": text} for text in TEXTS]}
VECTORS = ("dense", "sparse", "multivector")  # the output of the example for encode, in order of preference


@dataclass(frozen=True)
class Examples:
    """The models in the examples: one that scores, one that encodes, its output, and one with dense vectors."""

    scorer: str = DEFAULT_MODEL
    encoder: str = DEFAULT_MODEL
    output: str = "dense"
    embedder: str = DEFAULT_MODEL

    def body(self, request: str) -> Json:
        """Return the example of a request body, by the name of its struct."""
        adapter = {"model": self.scorer, "adapter": "my-adapter"}
        return {
            "ScoreRequest": SCORE,
            "EncodeRequest": {"items": SCORE["items"], "params": {"output_types": [self.output]}},
            "EmbeddingsRequest": {"model": self.embedder, "input": TEXTS},
            "AdminLoadRequest": {"model": self.scorer},
            "AdminUnloadRequest": {"model": self.scorer},
            "AdminSwapRequest": {"model": self.scorer, "source": "my/reranker"},
            "AdapterLoadRequest": {**adapter, "source": "my/adapter"},
            "AdapterUnloadRequest": adapter,
        }[request]


def of_models(served: list[ModelInfo]) -> Examples:
    """Return examples with the first models in `served` that can answer them, else with the embedded model."""

    def first(output: str) -> str | None:
        return next((info.name for info in served if output in info.outputs), None)

    encoders = {output: name for output in VECTORS if (name := first(output))}
    output = next(iter(encoders), "dense")
    return Examples(
        scorer=first("score") or DEFAULT_MODEL,
        encoder=encoders.get(output, DEFAULT_MODEL),
        output=output,
        embedder=first("dense") or DEFAULT_MODEL,
    )
