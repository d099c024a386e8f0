# Stage 1: fast retrieval from your vector database
query_text = "What is machine learning?"
query_embedding = client.encode(
    "BAAI/bge-m3",
    Item(text=query_text),
    is_query=True,
)
# ...search your vector DB, get top 100 candidates...

# Stage 2: accurate reranking of those candidates
result = client.score(
    "BAAI/bge-reranker-v2-m3",
    query=Item(text=query_text),
    items=[Item(id=f"doc-{i}", text=doc["text"]) for i, doc in enumerate(top_100_docs)]
)

top_10_ids = [entry["item_id"] for entry in result["scores"][:10]]
