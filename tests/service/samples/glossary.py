from sie_sdk import SIEClient
from sie_sdk.types import Item

client = SIEClient("http://localhost:8080")

# First-stage: fast embedding retrieval
candidates = vector_db.search(query_vector, top_k=100)
candidate_texts = [c.text for c in candidates]

# Second-stage: rerank for precision
score_result = client.score(
    "BAAI/bge-reranker-v2-m3",
    Item(text="indemnification clause"),
    [Item(id=str(i), text=t) for i, t in enumerate(candidate_texts)],
)
id_to_candidate = {str(i): c for i, c in enumerate(candidates)}
results = [id_to_candidate[e["item_id"]] for e in score_result["scores"][:10]]
