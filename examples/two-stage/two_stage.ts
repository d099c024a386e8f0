/**
 * Two stages: vector search finds candidates, the reranker sorts them. This is two_stage.py in TypeScript; each program
 * can read the database of the other.
 *
 *     sie-server serve &
 *     npm start -- "feeling awake at night after a long flight"
 */

import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { SIEClient } from "@superlinked/sie-sdk";
import Database from "libsql";
import { load } from "sqlite-vec";

const CORPUS = new URL("../../demo/corpus.jsonl", import.meta.url);
const ENCODER = "sentence-transformers/all-MiniLM-L6-v2";
const RERANKER = "sie/mini-en";
const DIMENSIONS = 384;
const SCHEMA = `
create table passages (id text unique, title text, text text);
create virtual table vectors using vec0(vector float[${DIMENSIONS}] distance_metric=cosine);
`;
const NEAREST = `
select passages.id, title, text, 1 - distance as score
from vectors join passages on passages.rowid = vectors.rowid
where vector match ? and k = ? order by distance
`;

interface Passage {
  id: string;
  title: string;
  text: string;
}

/** A passage and its score in one stage; higher is more relevant. */
interface Hit extends Passage {
  score: number;
}

/** Open a SQLite database with vectors: one file (or `:memory:`), no server. */
function openDatabase(path: string): Database.Database {
  const database = new Database(path);
  load(database);
  if (!database.prepare("select 1 from sqlite_master where name = 'passages'").get()) database.exec(SCHEMA);
  return database;
}

/** Encode new passages and store them with their vectors. */
async function add(database: Database.Database, client: SIEClient, passages: Passage[]): Promise<void> {
  const known = new Set(database.prepare("select id from passages").pluck().all());
  const added = passages.filter((passage) => !known.has(passage.id));
  if (!added.length) return;
  const items = added.map((passage) => ({ text: `${passage.title}. ${passage.text}` }));
  const results = await client.encode(ENCODER, items, { isQuery: false });
  const passageRow = database.prepare("insert into passages values (?, ?, ?)");
  const vectorRow = database.prepare("insert into vectors (rowid, vector) values (?, ?)");
  const store = database.transaction(() => {
    for (const [index, { id, title, text }] of added.entries()) {
      const row = passageRow.run(id, title, text).lastInsertRowid;
      vectorRow.run(BigInt(row), bytes(results[index]?.dense));
    }
  });
  store();
}

/** Return the nearest passages with their cosines (stage 1). */
async function search(
  database: Database.Database,
  client: SIEClient,
  query: string,
  count: number,
): Promise<Hit[]> {
  const { dense } = await client.encode(ENCODER, { text: query }, { isQuery: true });
  return database.prepare(NEAREST).all(bytes(dense), BigInt(count)) as Hit[];
}

/** Return the passages in the reranker's order, with its scores (stage 2). */
async function rerank(client: SIEClient, query: string, hits: Hit[]): Promise<Hit[]> {
  const byId = new Map(hits.map((hit) => [hit.id, hit]));
  const items = hits.map((hit) => ({ id: hit.id, text: `${hit.title}. ${hit.text}` }));
  const { scores } = await client.score(RERANKER, { text: query }, items);
  return scores.map(({ itemId, score }) => ({ ...(byId.get(itemId as string) as Hit), score }));
}

/** Convert a vector to 32-bit floats, the format of sqlite-vec. */
function bytes(vector: ArrayLike<number> | null | undefined): Buffer {
  if (!vector) throw new Error(`${ENCODER} returned no dense vector`);
  return Buffer.from(Float32Array.from(vector).buffer);
}

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    url: { type: "string" }, // default: SIE_BASE_URL, else http://localhost:8080
    database: { type: "string", default: ":memory:" }, // a file keeps the vectors
    candidates: { type: "string", default: "20" },
    top: { type: "string", default: "5" },
  },
});
const query = positionals[0];
if (!query) throw new Error('usage: npm start -- "QUERY" [--url URL] [--database FILE] [--candidates N] [--top N]');
const passages: Passage[] = readFileSync(CORPUS, "utf8").trim().split("\n").map((line) => JSON.parse(line));
const client = new SIEClient(values.url);
const database = openDatabase(values.database);
await add(database, client, passages);
const found = await search(database, client, query, Number(values.candidates));
const place = new Map(found.map((hit, index) => [hit.id, index + 1]));
const best = (await rerank(client, query, found)).slice(0, Number(values.top));
for (const [index, hit] of best.entries())
  console.log(`${index + 1}. ${hit.score.toFixed(3)}  ${hit.title}  (was ${place.get(hit.id)})`);
database.close();
await client.close();
