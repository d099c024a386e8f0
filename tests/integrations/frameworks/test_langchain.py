"""sie-langchain in LangChain's own retriever, vector store, callbacks and serialisation."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.load import dumps, loads
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import ValidationError

from sie_langchain import SIEEmbeddings, SIEReranker
from sie_sdk import AuthError, Item, ModelNotFoundError, ProtocolError, SIEClient
from support.requests.rankings import BERT, ENCODER, INSTRUCTED, MINI, QUERY, TEXTS, ranking
from support.servers.processes import Server


def documents() -> list[Document]:
    old = {"relevance_score": "old", "tags": ["a"]}
    return [Document(id="same", page_content=text, metadata={**old, "at": i}) for i, text in enumerate(TEXTS)]


def order(found: Any) -> list[tuple[int, float]]:
    return [(one.metadata["at"], one.metadata["relevance_score"]) for one in found]


@pytest.mark.parametrize("model", [MINI, BERT, INSTRUCTED])
async def test_order_and_scores_equal_the_clients(server: Server, client: SIEClient, model: str) -> None:
    expected = ranking(client, model, QUERY, TEXTS)
    reranker = SIEReranker(model=model, base_url=server.base_url)
    assert order(await asyncio.to_thread(reranker.compress_documents, documents(), QUERY)) == expected
    assert order(await reranker.acompress_documents(documents(), QUERY)) == expected
    best = SIEReranker(model=model, base_url=server.base_url, top_k=2)
    assert order(best.compress_documents(documents(), QUERY)) == expected[:2]


def test_input_documents_are_not_changed(server: Server) -> None:
    before = documents()
    found = SIEReranker(model=MINI, base_url=server.base_url).compress_documents(before, QUERY)
    found[0].metadata["tags"].append("changed")
    assert before == documents()
    assert [one.id for one in found] == ["same"] * len(TEXTS)


def test_no_request_is_sent_without_documents() -> None:
    nobody = SIEReranker(model=MINI, base_url="http://127.0.0.1:9")
    assert list(nobody.compress_documents([], QUERY)) == []
    assert list(asyncio.run(nobody.acompress_documents([], QUERY))) == []


def test_a_missing_score_is_an_error(server: Server) -> None:
    reranker = SIEReranker(model=MINI, base_url=server.base_url, options={"top_n": 2})
    with pytest.raises(ProtocolError, match="3 of 5 texts have no score"):
        reranker.compress_documents(documents(), QUERY)


def test_the_instruction_and_the_options_reach_the_model(server: Server, client: SIEClient) -> None:
    plain = ranking(client, INSTRUCTED, QUERY, TEXTS)
    told = ranking(client, INSTRUCTED, QUERY, TEXTS, instruction="Find rain", options={"normalize": "none"})
    assert told != plain
    reranker = SIEReranker(
        model=INSTRUCTED, base_url=server.base_url, instruction="Find rain", options={"normalize": "none"}
    )
    assert order(reranker.compress_documents(documents(), QUERY)) == told


def test_the_best_window_of_a_long_document(server: Server) -> None:
    long = Document("Rain fell. " * 400 + "Machine learning learns from data. " * 40 + "Rain fell. " * 400)
    options = {"long_document": "chunk"}
    reranker = SIEReranker(model=MINI, base_url=server.base_url, options=options)
    [found] = reranker.compress_documents([long], QUERY)
    span = found.metadata["relevance_chunk"]
    assert "Machine learning" in long.page_content[span["start"] : span["end"]]
    assert span["count"] > 2


def test_warnings_of_the_server_are_logged(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sie_sdk"):
        reranker = SIEReranker(model=MINI, base_url=server.base_url, options={"typo": 1})
        reranker.compress_documents(documents(), QUERY)
    assert "typo" in caplog.text


class Listener(BaseCallbackHandler):
    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []

    def on_chain_start(self, serialized: Any, inputs: Any, **more: Any) -> None:
        self.heard.append(("start", (more["name"], more["parent_run_id"], inputs)))

    def on_chain_end(self, outputs: Any, **more: Any) -> None:
        self.heard.append(("end", outputs))

    def on_chain_error(self, error: BaseException, **more: Any) -> None:
        self.heard.append(("error", error))


class AsyncListener(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.heard: list[str] = []

    async def on_chain_start(self, serialized: Any, inputs: Any, **more: Any) -> None:
        self.heard.append(more["name"])


async def test_callbacks_receive_the_call(server: Server) -> None:
    listener = Listener()
    reranker = SIEReranker(model=MINI, base_url=server.base_url)
    found = reranker.compress_documents(documents(), QUERY, callbacks=[listener])
    [(first, (name, _, inputs)), (second, outputs)] = listener.heard
    assert (first, second, name) == ("start", "end", "SIEReranker")
    assert inputs["query"] == QUERY and outputs == found
    also = AsyncListener()
    await reranker.acompress_documents(documents(), QUERY, callbacks=[also])
    assert also.heard == ["SIEReranker"]


def test_callbacks_receive_an_error(server: Server) -> None:
    listener = Listener()
    with pytest.raises(ModelNotFoundError):
        SIEReranker(model="no/such", base_url=server.base_url).compress_documents(
            documents(), QUERY, callbacks=[listener]
        )
    assert isinstance(listener.heard[-1][1], ModelNotFoundError)


def stored(server: Server) -> InMemoryVectorStore:
    store = InMemoryVectorStore(SIEEmbeddings(model=MINI, base_url=server.base_url))
    store.add_documents([one.model_copy(update={"id": str(i)}) for i, one in enumerate(documents())])
    return store


def test_in_a_compression_retriever(server: Server, client: SIEClient) -> None:
    listener = Listener()
    retriever = ContextualCompressionRetriever(
        base_retriever=stored(server).as_retriever(search_kwargs={"k": len(TEXTS)}),
        base_compressor=SIEReranker(model=MINI, base_url=server.base_url, top_k=3),
    )
    found = retriever.invoke(QUERY, {"callbacks": [listener]})
    assert sorted(order(found)) == sorted(ranking(client, MINI, QUERY, TEXTS)[:3])
    [(_, (name, parent, _)), _] = listener.heard
    assert name == "SIEReranker" and parent is not None  # a child of the retriever's run
    assert [one.page_content for one in asyncio.run(retriever.ainvoke(QUERY))] == [
        one.page_content for one in found
    ]


async def test_embeddings_equal_the_clients(server: Server, client: SIEClient) -> None:
    embeddings = SIEEmbeddings(model=ENCODER, base_url=server.base_url)
    items = [Item(text=text) for text in TEXTS]
    expected = [one["dense"].tolist() for one in client.encode(ENCODER, items, is_query=False)]
    assert embeddings.embed_documents(TEXTS) == expected
    assert await embeddings.aembed_documents(TEXTS) == expected
    query = client.encode(ENCODER, Item(text=TEXTS[0]), is_query=True)["dense"].tolist()
    assert embeddings.embed_query(TEXTS[0]) == query == await embeddings.aembed_query(TEXTS[0])
    assert query != embeddings.embed_documents([TEXTS[0]])[0]  # queries have another prompt
    assert embeddings.embed_documents([]) == []


def test_many_documents_are_sent_in_several_requests(server: Server) -> None:
    embeddings = SIEEmbeddings(model=ENCODER, base_url=server.base_url)
    texts = [f"rain {i}" for i in range(300)]
    labels = {"route": "encode", "model": ENCODER, "status": "200"}
    before = server.metric("sie_requests_total", **labels)
    vectors = embeddings.embed_documents(texts)
    assert server.metric("sie_requests_total", **labels) == before + 3
    assert vectors[299] == pytest.approx(embeddings.embed_documents(texts[299:])[0], abs=1e-5)
    assert len(vectors) == 300


def test_the_instruction_is_for_queries(server: Server) -> None:
    plain = SIEEmbeddings(model=ENCODER, base_url=server.base_url)
    told = SIEEmbeddings(model=ENCODER, base_url=server.base_url, instruction="snow: ")
    assert told.embed_query("ice") != plain.embed_query("ice")
    assert told.embed_documents(["ice"]) == plain.embed_documents(["ice"])


def test_saved_and_loaded_without_the_key(server: Server) -> None:
    options = {"long_document": "chunk"}
    for made in (
        SIEReranker(model=MINI, base_url=server.base_url, api_key="hush", top_k=2, options=options),
        SIEEmbeddings(model=MINI, base_url=server.base_url, api_key="hush", instruction="x"),
    ):
        text = dumps(made)
        assert "hush" not in text + repr(made) + str(json.loads(text))
        kind = type(made)
        again = loads(
            text,
            allowed_objects=[kind],
            valid_namespaces=["sie_langchain"],
            secrets_map={"SIE_API_KEY": "hush"},
        )
        assert again == made and again.api_key.get_secret_value() == "hush"


def test_the_key_is_sent(doorman: tuple[str, list[str | None]], monkeypatch: pytest.MonkeyPatch) -> None:
    address, seen = doorman
    with pytest.raises(AuthError):
        SIEReranker(model=MINI, base_url=address, api_key="hush").compress_documents(documents(), QUERY)
    monkeypatch.setenv("SIE_API_KEY", "outside")
    with pytest.raises(AuthError):
        SIEEmbeddings(model=MINI, base_url=address).embed_query("x")
    assert seen == ["Bearer hush", "Bearer outside"]


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="top_n"):
        SIEReranker(model=MINI, top_n=3)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="top_k"):
        SIEReranker(model=MINI, top_k=0)
    with pytest.raises(ValidationError, match="model"):
        SIEReranker()  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="base_url"):
        SIEReranker(model=MINI, base_url="localhost:8080")


def test_one_object_serves_many_event_loops(server: Server, client: SIEClient) -> None:
    reranker = SIEReranker(model=MINI, base_url=server.base_url)
    expected = ranking(client, MINI, QUERY, TEXTS)
    for _ in range(3):
        assert order(asyncio.run(reranker.acompress_documents(documents(), QUERY))) == expected
