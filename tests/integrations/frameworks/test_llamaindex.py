"""sie-llamaindex in LlamaIndex's own index, query engine, instrumentation and serialisation."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers.base import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
from pydantic import ValidationError

from sie_llamaindex import SIEEmbedding, SIENodePostprocessor
from sie_sdk import AuthError, Item, ModelNotFoundError, ProtocolError, SIEClient
from support.requests.questions import KEY
from support.requests.rankings import BERT, ENCODER, INSTRUCTED, MINI, QUERY, TEXTS, ranking
from support.servers.processes import Server

EVENTS: list[Any] = []


class Recorder(BaseEventHandler):
    def handle(self, event: Any, **more: Any) -> None:
        if isinstance(event, (ReRankStartEvent, ReRankEndEvent)):
            EVENTS.append(event)


@pytest.fixture
def events() -> Iterator[list[Any]]:
    """Record the reranking events of LlamaIndex's root dispatcher."""
    recorder, root = Recorder(), get_dispatcher()
    root.add_event_handler(recorder)
    EVENTS.clear()
    yield EVENTS
    root.event_handlers.remove(recorder)


def nodes() -> list[NodeWithScore]:
    """Return nodes with metadata, which LlamaIndex embeds with the text."""
    return [
        NodeWithScore(node=TextNode(id_=str(i), text=text, metadata={"topic": "notes"}), score=0.25)
        for i, text in enumerate(TEXTS)
    ]


def read_texts() -> list[str]:
    return [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes()]


def order(found: list[NodeWithScore]) -> list[tuple[int, float | None]]:
    return [(int(one.node.node_id), one.score) for one in found]


@pytest.mark.parametrize("model", [MINI, BERT, INSTRUCTED])
async def test_order_and_scores_equal_the_clients(server: Server, client: SIEClient, model: str) -> None:
    expected = ranking(client, model, QUERY, read_texts())
    assert "topic: notes" in read_texts()[0]
    reranker = SIENodePostprocessor(model=model, base_url=server.base_url)
    assert order(await asyncio.to_thread(reranker.postprocess_nodes, nodes(), QueryBundle(QUERY))) == expected
    assert order(await reranker.apostprocess_nodes(nodes(), query_str=QUERY)) == expected
    best = SIENodePostprocessor(model=model, base_url=server.base_url, top_n=2)
    assert order(best.postprocess_nodes(nodes(), query_str=QUERY)) == expected[:2]


def test_input_nodes_are_not_changed(server: Server) -> None:
    before = nodes()
    SIENodePostprocessor(model=MINI, base_url=server.base_url).postprocess_nodes(before, query_str=QUERY)
    assert before == nodes()


def test_no_request_is_sent_without_nodes() -> None:
    nobody = SIENodePostprocessor(model=MINI, base_url="http://127.0.0.1:9")
    assert nobody.postprocess_nodes([], query_str=QUERY) == []
    assert asyncio.run(nobody.apostprocess_nodes([], query_str=QUERY)) == []


def test_a_missing_query_is_an_error_that_says_what_to_pass(server: Server) -> None:
    with pytest.raises(ValueError, match="query_bundle or query_str"):
        SIENodePostprocessor(model=MINI, base_url=server.base_url).postprocess_nodes(nodes())


def test_a_missing_score_is_an_error(server: Server) -> None:
    reranker = SIENodePostprocessor(model=MINI, base_url=server.base_url, options={"top_n": 2})
    with pytest.raises(ProtocolError, match="3 of 5 texts have no score"):
        reranker.postprocess_nodes(nodes(), query_str=QUERY)


def test_the_instruction_and_the_options_reach_the_model(server: Server, client: SIEClient) -> None:
    params: dict[str, Any] = {"instruction": "Find rain", "options": {"normalize": "none"}}
    told = ranking(client, INSTRUCTED, QUERY, read_texts(), **params)
    assert told != ranking(client, INSTRUCTED, QUERY, read_texts())
    reranker = SIENodePostprocessor(model=INSTRUCTED, base_url=server.base_url, **params)
    assert order(reranker.postprocess_nodes(nodes(), query_str=QUERY)) == told


def test_the_best_window_of_a_long_node(server: Server) -> None:
    text = "Rain fell. " * 400 + "Machine learning learns from data. " * 40 + "Rain fell. " * 400
    node = TextNode(text=text)
    options = {"long_document": "chunk"}
    reranker = SIENodePostprocessor(model=MINI, base_url=server.base_url, options=options)
    [found] = reranker.postprocess_nodes([NodeWithScore(node=node)], query_str=QUERY)
    span = found.node.metadata["relevance_chunk"]
    assert "Machine learning" in text[span["start"] : span["end"]]
    assert node.metadata == {}
    for mode in (MetadataMode.EMBED, MetadataMode.LLM):  # the span is hidden from embedding models and LLMs
        assert found.node.get_content(metadata_mode=mode) == node.get_content(metadata_mode=mode)


async def test_instrumentation_and_callbacks_receive_the_call(server: Server, events: list[Any]) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    reranker = SIENodePostprocessor(
        model=MINI, base_url=server.base_url, top_n=2, callback_manager=CallbackManager([debug])
    )
    found = await reranker.apostprocess_nodes(nodes(), query_str=QUERY)
    start, end = events
    assert (start.query, start.top_n, start.model_name) == (QUERY, 2, MINI)
    assert order(start.nodes) == order(nodes()) and order(end.nodes) == order(found)
    [(first, second)] = debug.get_event_pairs(CBEventType.RERANKING)
    assert first.payload is not None and first.payload["query_str"] == QUERY
    assert second.payload == {"nodes": found}


def test_an_error_ends_without_an_end_event(server: Server, events: list[Any]) -> None:
    with pytest.raises(ModelNotFoundError):
        SIENodePostprocessor(model="no/such", base_url=server.base_url).postprocess_nodes(
            nodes(), query_str=QUERY
        )
    assert [type(event) for event in events] == [ReRankStartEvent]


async def test_in_a_query_engine(server: Server, client: SIEClient) -> None:
    embedding = SIEEmbedding(model=MINI, base_url=server.base_url)
    index = VectorStoreIndex([one.node for one in nodes()], embed_model=embedding)
    engine = index.as_query_engine(
        llm=MockLLM(),
        similarity_top_k=len(TEXTS),
        node_postprocessors=[SIENodePostprocessor(model=MINI, base_url=server.base_url, top_n=3)],
    )
    expected = sorted(score for _, score in ranking(client, MINI, QUERY, read_texts())[:3])
    answer = await asyncio.to_thread(engine.query, QUERY)
    assert sorted(one.score or 0.0 for one in answer.source_nodes) == pytest.approx(expected, abs=1e-6)
    again = await engine.aquery(QUERY)
    assert [one.node_id for one in again.source_nodes] == [one.node_id for one in answer.source_nodes]


async def test_embeddings_equal_the_clients(server: Server, client: SIEClient) -> None:
    embedding = SIEEmbedding(model=ENCODER, base_url=server.base_url, embed_batch_size=len(TEXTS))
    items = [Item(text=text) for text in TEXTS]
    expected = [one["dense"].tolist() for one in client.encode(ENCODER, items, is_query=False)]
    assert embedding.get_text_embedding_batch(TEXTS) == expected
    assert await embedding.aget_text_embedding_batch(TEXTS) == expected
    alone = client.encode(ENCODER, [items[0]], is_query=False)[0]["dense"].tolist()
    assert embedding.get_text_embedding(TEXTS[0]) == alone == await embedding.aget_text_embedding(TEXTS[0])
    query = client.encode(ENCODER, items[0], is_query=True)["dense"].tolist()
    assert embedding.get_query_embedding(TEXTS[0]) == query == await embedding.aget_query_embedding(TEXTS[0])
    assert query != alone


def test_the_instruction_is_for_queries(server: Server) -> None:
    plain = SIEEmbedding(model=ENCODER, base_url=server.base_url)
    told = SIEEmbedding(model=ENCODER, base_url=server.base_url, instruction="snow: ")
    assert told.get_query_embedding("ice") != plain.get_query_embedding("ice")
    assert told.get_text_embedding("ice") == plain.get_text_embedding("ice")


def test_saved_and_loaded_without_the_key(server: Server) -> None:
    options = {"long_document": "chunk"}
    reranker = SIENodePostprocessor(
        model=MINI, base_url=server.base_url, api_key="hush", top_n=2, options=options
    )
    embedding = SIEEmbedding(model=ENCODER, base_url=server.base_url, api_key="hush", instruction="x")
    for made in (reranker, embedding):
        saved = made.to_dict()
        assert "hush" not in json.dumps(saved) + repr(made)
        assert saved["class_name"] == type(made).__name__ == made.class_name()
        assert type(made).from_dict(saved).to_dict() == saved
    assert embedding.to_dict()["model_name"] == ENCODER


def test_it_can_be_pickled_for_workers(server: Server) -> None:
    embedding = SIEEmbedding(model=ENCODER, base_url=server.base_url, api_key=KEY)
    vector = embedding.get_text_embedding("rain")
    copy = pickle.loads(pickle.dumps(embedding))  # noqa: S301  what was pickled just now
    assert copy.get_text_embedding("rain") == vector
    assert copy.api_key.get_secret_value() == KEY


def test_the_key_is_sent(doorman: tuple[str, list[str | None]], monkeypatch: pytest.MonkeyPatch) -> None:
    address, seen = doorman
    with pytest.raises(AuthError):
        SIENodePostprocessor(model=MINI, base_url=address, api_key="hush").postprocess_nodes(
            nodes(), query_str=QUERY
        )
    monkeypatch.setenv("SIE_API_KEY", "outside")
    with pytest.raises(AuthError):
        SIEEmbedding(model=MINI, base_url=address).get_query_embedding("x")
    assert seen == ["Bearer hush", "Bearer outside"]


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="top_n"):
        SIENodePostprocessor(model=MINI, top_n=0)
    with pytest.raises(ValidationError, match="top_k"):
        SIENodePostprocessor(model=MINI, top_k=3)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="model"):
        SIEEmbedding()  # type: ignore[call-arg]
