// The samples of the product's documentation, word for word, each in its own block.
import { SIEClient } from "@superlinked/sie-sdk";

const client = new SIEClient("http://localhost:8080");

{
  const query = { text: "What is machine learning?" };
  const items = [
    { text: "Machine learning is a subset of AI that learns from data." },
    { text: "The weather forecast predicts rain tomorrow." },
    { text: "Deep neural networks power modern ML systems." },
  ];

  const result = await client.score("BAAI/bge-reranker-v2-m3", query, items);
  for (const entry of result.scores) {
    console.log(`Rank ${entry.rank}: ${entry.score.toFixed(3)}`);
  }
}

{
  const top100Docs = Array.from({ length: 100 }, (_, i) => ({ text: `text number ${i}` }));
  // Stage 1: fast retrieval from your vector database
  const queryText = "What is machine learning?";
  const queryEmbedding = await client.encode(
    "BAAI/bge-m3",
    { text: queryText },
    { isQuery: true },
  );
  // ...search your vector DB, get top 100 candidates...

  // Stage 2: accurate reranking of those candidates
  const result = await client.score(
    "BAAI/bge-reranker-v2-m3",
    { text: queryText },
    top100Docs.map((doc, i) => ({ id: `doc-${i}`, text: doc.text })),
  );

  const top10Ids = result.scores.slice(0, 10).map(entry => entry.itemId);
  console.log(`${queryEmbedding.dense?.length} ${new Set(top10Ids).size}`);
}

{
  const query = { id: "q1", text: "What is Python?" };
  const items = [
    { id: "doc-1", text: "Python is a programming language." },
    { id: "doc-2", text: "Snakes are reptiles." },
    { id: "doc-3", text: "Python was created by Guido van Rossum." },
  ];
  const result = await client.score("BAAI/bge-reranker-v2-m3", query, items);
  for (const entry of result.scores) {
    console.log(`${entry.itemId}: rank=${entry.rank}, score=${entry.score.toFixed(3)}`);
  }
}

await client.close();
