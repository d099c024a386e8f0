"""sie-haystack in Haystack's own pipelines, document store and YAML."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import Secret

from haystack_integrations.components.embedders.sie import SIEDocumentEmbedder, SIETextEmbedder
from haystack_integrations.components.rankers.sie import SIERanker
from sie_sdk import AuthError, Item, ProtocolError, SIEClient
from support.requests.rankings import BERT, ENCODER, INSTRUCTED, MINI, QUERY, TEXTS, ranking
from support.servers.processes import Server


def documents() -> list[Document]:
    return [
        Document(id="same", content=text, score=0.25, meta={"at": i, "title": f"title {i % 2}"})
        for i, text in enumerate(TEXTS)
    ]


def order(answer: dict[str, list[Document]]) -> list[tuple[int, float | None]]:
    return [(one.meta["at"], one.score) for one in answer["documents"]]


@pytest.mark.parametrize("model", [MINI, BERT, INSTRUCTED])
async def test_order_and_scores_equal_the_clients(server: Server, client: SIEClient, model: str) -> None:
    expected = ranking(client, model, QUERY, TEXTS)
    ranker = SIERanker(model=model, base_url=server.base_url)
    assert order(await asyncio.to_thread(ranker.run, query=QUERY, documents=documents())) == expected
    assert order(await ranker.run_async(query=QUERY, documents=documents())) == expected
    best = SIERanker(model=model, base_url=server.base_url, top_k=2)
    assert order(best.run(query=QUERY, documents=documents())) == expected[:2]
    assert order(best.run(query=QUERY, documents=documents(), top_k=3)) == expected[:3]


def test_a_threshold_leaves_out_lower_scores(server: Server, client: SIEClient) -> None:
    expected = ranking(client, MINI, QUERY, TEXTS)
    lowest = expected[2][1]
    ranker = SIERanker(model=MINI, base_url=server.base_url, score_threshold=lowest)
    assert order(ranker.run(query=QUERY, documents=documents())) == expected[:3]
    assert order(ranker.run(query=QUERY, documents=documents(), score_threshold=99.0)) == []
    assert order(ranker.run(query=QUERY, documents=documents(), score_threshold=-99.0)) == expected
    assert order(ranker.run(query=QUERY, documents=documents(), top_k=1)) == expected[:1]


def test_meta_fields_are_read_before_the_content(server: Server, client: SIEClient) -> None:
    texts = [f"title {i % 2} - {text}" for i, text in enumerate(TEXTS)]
    ranker = SIERanker(
        model=MINI,
        base_url=server.base_url,
        meta_fields_to_embed=["title", "absent"],
        embedding_separator=" - ",
    )
    assert order(ranker.run(query=QUERY, documents=documents())) == ranking(client, MINI, QUERY, texts)


def test_input_documents_are_not_changed(server: Server) -> None:
    before = documents()
    found = SIERanker(model=MINI, base_url=server.base_url).run(query=QUERY, documents=before)["documents"]
    embedded = SIEDocumentEmbedder(model=MINI, base_url=server.base_url).run(documents=before)["documents"]
    found[0].meta["new"] = 1
    assert before == documents()
    assert [one.id for one in found + embedded] == ["same"] * 2 * len(TEXTS)


def test_no_request_is_sent_without_documents() -> None:
    nobody = SIERanker(model=MINI, base_url="http://127.0.0.1:9")
    assert nobody.run(query=QUERY, documents=[]) == {"documents": []}
    embedder = SIEDocumentEmbedder(model=MINI, base_url="http://127.0.0.1:9")
    assert asyncio.run(embedder.run_async(documents=[]))["documents"] == []


def test_a_missing_score_is_an_error(server: Server) -> None:
    ranker = SIERanker(model=MINI, base_url=server.base_url, options={"top_n": 2})
    with pytest.raises(ProtocolError, match="3 of 5 texts have no score"):
        ranker.run(query=QUERY, documents=documents())


def test_a_document_without_text_is_an_error(server: Server) -> None:
    ranker = SIERanker(model=MINI, base_url=server.base_url, meta_fields_to_embed=["title"])
    with pytest.raises(ValueError, match="document picture has no text"):
        ranker.run(query=QUERY, documents=[*documents(), Document(id="picture")])
    titled = Document(id="picture", meta={"title": "Machine learning", "at": 9})
    assert len(ranker.run(query=QUERY, documents=[*documents(), titled])["documents"]) == 6


def test_the_instruction_and_the_options_reach_the_model(server: Server, client: SIEClient) -> None:
    params: dict[str, Any] = {"instruction": "Find rain", "options": {"normalize": "none"}}
    told = ranking(client, INSTRUCTED, QUERY, TEXTS, **params)
    assert told != ranking(client, INSTRUCTED, QUERY, TEXTS)
    ranker = SIERanker(model=INSTRUCTED, base_url=server.base_url, **params)
    assert order(ranker.run(query=QUERY, documents=documents())) == told


def test_the_best_window_of_a_long_document(server: Server) -> None:
    text = "Rain fell. " * 400 + "Machine learning learns from data. " * 40 + "Rain fell. " * 400
    ranker = SIERanker(model=MINI, base_url=server.base_url, options={"long_document": "chunk"})
    [found] = ranker.run(query=QUERY, documents=[Document(content=text)])["documents"]
    span = found.meta["relevance_chunk"]
    assert "Machine learning" in text[span["start"] : span["end"]]


async def test_embeddings_equal_the_clients(server: Server, client: SIEClient) -> None:
    items = [Item(text=f"<title {i % 2}|{text}>") for i, text in enumerate(TEXTS)]
    expected = [one["dense"].tolist() for one in client.encode(ENCODER, items, is_query=False)]
    embedder = SIEDocumentEmbedder(
        model=ENCODER,
        base_url=server.base_url,
        prefix="<",
        suffix=">",
        meta_fields_to_embed=["title"],
        embedding_separator="|",
    )
    found = embedder.run(documents=documents())
    again = await embedder.run_async(documents=documents())
    assert [one.embedding for one in found["documents"]] == expected
    assert [one.embedding for one in again["documents"]] == expected
    assert found["meta"] == {"model": ENCODER}
    text_embedder = SIETextEmbedder(model=ENCODER, base_url=server.base_url, prefix="<", suffix=">")
    query = client.encode(ENCODER, Item(text="<ice>"), is_query=True)["dense"].tolist()
    assert text_embedder.run(text="ice")["embedding"] == query
    assert (await text_embedder.run_async(text="ice"))["embedding"] == query
    assert query != client.encode(ENCODER, Item(text="<ice>"), is_query=False)["dense"].tolist()


def test_instructions_replace_the_prompts(server: Server, client: SIEClient) -> None:
    told = client.encode(ENCODER, Item(text="ice"), instruction="snow: ")["dense"].tolist()
    text_embedder = SIETextEmbedder(model=ENCODER, base_url=server.base_url, instruction="snow: ")
    embedder = SIEDocumentEmbedder(model=ENCODER, base_url=server.base_url, instruction="snow: ")
    assert text_embedder.run(text="ice")["embedding"] == told
    assert embedder.run(documents=[Document(content="ice")])["documents"][0].embedding == told


def pipeline(server: Server, store: InMemoryDocumentStore) -> Pipeline:
    made = Pipeline()
    made.add_component("embedder", SIETextEmbedder(model=MINI, base_url=server.base_url))
    made.add_component("retriever", InMemoryEmbeddingRetriever(document_store=store, top_k=len(TEXTS)))
    made.add_component(
        "ranker",
        SIERanker(
            model=MINI,
            base_url=server.base_url,
            top_k=3,
            score_threshold=-1.0,
            options={"max_seq_length": 64},
        ),
    )
    made.connect("embedder.embedding", "retriever.query_embedding")
    made.connect("retriever.documents", "ranker.documents")
    return made


def filled(server: Server) -> InMemoryDocumentStore:
    store = InMemoryDocumentStore()
    writing = Pipeline()
    writing.add_component("embedder", SIEDocumentEmbedder(model=MINI, base_url=server.base_url))
    writing.add_component("writer", DocumentWriter(document_store=store))
    writing.connect("embedder.documents", "writer.documents")
    different = [Document(content=text, meta={"at": i}) for i, text in enumerate(TEXTS)]
    writing.run({"embedder": {"documents": different}})
    return store


async def test_in_a_pipeline_that_is_saved_and_loaded(server: Server, client: SIEClient) -> None:
    inputs = {"embedder": {"text": QUERY}, "ranker": {"query": QUERY}}
    made = pipeline(server, filled(server))
    expected = ranking(client, MINI, QUERY, TEXTS, options={"max_seq_length": 64})[:3]
    ran = await asyncio.to_thread(made.run, inputs)
    # compared by text, because the retriever returned them in another order
    assert dict(order(ran["ranker"])) == pytest.approx(dict(expected), abs=1e-6)
    text = made.dumps()
    again = Pipeline.loads(text)
    assert again.dumps() == text
    again.get_component("retriever").document_store = filled(server)
    assert order((await again.run_async(inputs))["ranker"]) == order(ran["ranker"])


@pytest.mark.parametrize("kind", [SIERanker, SIETextEmbedder, SIEDocumentEmbedder])
def test_a_key_is_saved_as_a_reference_to_its_source(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_KEY", "hush")
    made = kind(
        model=MINI, base_url="http://host:1", api_key=Secret.from_env_var("OUR_KEY"), options={"a": 1}
    )
    saved = made.to_dict()
    assert "hush" not in str(saved) and saved["init_parameters"]["api_key"]["env_vars"] == ["OUR_KEY"]
    again = kind.from_dict(saved)
    assert again.to_dict() == made.to_dict() and again.api_key.resolve_value() == "hush"
    with pytest.raises(ValueError, match="token"):
        kind(model=MINI, api_key=Secret.from_token("hush")).to_dict()


def test_the_key_is_sent(doorman: tuple[str, list[str | None]], monkeypatch: pytest.MonkeyPatch) -> None:
    address, seen = doorman
    with pytest.raises(AuthError):
        SIERanker(model=MINI, base_url=address, api_key=Secret.from_token("hush")).run(
            query=QUERY, documents=documents()
        )
    monkeypatch.setenv("SIE_API_KEY", "outside")
    with pytest.raises(AuthError):
        SIETextEmbedder(model=MINI, base_url=address).run(text="x")
    assert seen == ["Bearer hush", "Bearer outside"]


async def test_warm_up_and_close_may_be_repeated(server: Server) -> None:
    ranker = SIERanker(model=MINI, base_url=server.base_url)
    ranker.close()
    for _ in range(2):
        ranker.warm_up()
        first = ranker.run(query=QUERY, documents=documents())
        assert await ranker.run_async(query=QUERY, documents=documents()) == first
        ranker.close()
        await ranker.close_async()


def test_wrong_input_is_refused(server: Server) -> None:
    with pytest.raises(ValueError, match="top_k is 0"):
        SIERanker(model=MINI, top_k=0)
    ranker = SIERanker(model=MINI, base_url=server.base_url)
    with pytest.raises(ValueError, match="top_k is -1"):
        ranker.run(query=QUERY, documents=documents(), top_k=-1)
    with pytest.raises(TypeError, match="SIETextEmbedder"):
        SIEDocumentEmbedder(model=MINI).run(documents="text")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="SIEDocumentEmbedder"):
        SIETextEmbedder(model=MINI).run(text=documents())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="base_url"):
        SIERanker(model=MINI, base_url="localhost").warm_up()
