"""`SIENodePostprocessor`: nodes in order of relevance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llama_index.core.bridge.pydantic import Field
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from sie_llamaindex.connection import Connected
from sie_sdk.texts import Ranked

dispatcher = get_dispatcher(__name__)


class SIENodePostprocessor(Connected, BaseNodePostprocessor):
    """Sorts retrieved nodes by the relevance of their text, including metadata for embedding, to the query.

    Returns new `NodeWithScore`s. With `options={"long_document": "chunk"}` they contain copies of the
    nodes, with the characters of the best window in `metadata["relevance_chunk"]`. Raises `sie_sdk.SIEError`.
    """

    model: str = Field(min_length=1, description="The model's id on the server.")
    top_n: int | None = Field(default=None, ge=1, description="Number of nodes to return; default: all.")

    @classmethod
    def class_name(cls) -> str:
        return "SIENodePostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _query(query_bundle)
        with self._reported(nodes, query) as best:
            ranked = self._client.rank(self.model, query, _texts(nodes), **self._params())
            best += self._best(nodes, ranked)
        return best

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _query(query_bundle)
        with self._reported(nodes, query) as best:
            ranked = await self._client.arank(self.model, query, _texts(nodes), **self._params())
            best += self._best(nodes, ranked)
        return best

    def _params(self) -> dict[str, Any]:
        return {"instruction": self.instruction, "options": self.options}

    def _best(self, nodes: list[NodeWithScore], ranked: list[Ranked]) -> list[NodeWithScore]:
        return [_scored(nodes[one.position], one) for one in ranked[: self.top_n]]

    @contextmanager
    def _reported(self, nodes: list[NodeWithScore], query: str) -> Iterator[list[NodeWithScore]]:
        """Report the start, and the end with the nodes in the list, to callbacks and instrumentation."""
        top_n = self.top_n or len(nodes)
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: top_n,
        }
        best: list[NodeWithScore] = []
        dispatcher.event(ReRankStartEvent(query=query, nodes=nodes, top_n=top_n, model_name=self.model))
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            yield best
            event.on_end(payload={EventPayload.NODES: best})
        dispatcher.event(ReRankEndEvent(nodes=best))


def _query(bundle: QueryBundle | None) -> str:
    if bundle is None:
        raise ValueError("a reranker needs the query: pass query_bundle or query_str")
    return bundle.query_str


def _texts(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]


def _scored(node: NodeWithScore, place: Ranked) -> NodeWithScore:
    if place.chunk is None:
        return NodeWithScore(node=node.node, score=place.score)
    key = "relevance_chunk"
    copy = node.node.model_copy()
    copy.metadata = {**copy.metadata, key: place.chunk}
    # the span is meant for readers, not for models
    copy.excluded_embed_metadata_keys = [*copy.excluded_embed_metadata_keys, key]
    copy.excluded_llm_metadata_keys = [*copy.excluded_llm_metadata_keys, key]
    return NodeWithScore(node=copy, score=place.score)
