/**
 * The client in Node against a real server: tests/service/test_typescript.py starts one and sets SIE_BASE_URL and
 * SIE_API_KEY. Its models are tiny and random, so answers are only compared with each other.
 */

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import * as sie from "../../src/index.js";

const [RERANKER, ENCODER, COLBERT, MINI] = ["BAAI/bge-reranker-v2-m3", "BAAI/bge-m3", "toy/colbert", "sie/mini-en"] as const;
const QUERY = { id: "q1", text: "What is machine learning?" };
const ITEMS: sie.Item[] = [
  { id: "ml", text: "Machine learning is a subset of AI that learns from data." },
  { text: "The weather forecast predicts rain tomorrow." },
  { id: "nn", text: "Deep neural networks power modern ML systems." },
];
const said: string[] = [];
let client: sie.SIEClient;

before(() => {
  client = new sie.SIEClient(undefined, { warn: (message) => said.push(message) });
});
after(() => client.close());

test("score ranks, in camelCase", async () => {
  const result = await client.score(MINI, QUERY, ITEMS);
  assert.deepEqual(result.scores.map((entry) => entry.itemId), ["ml", "nn", "item-1"]);
  assert.deepEqual(result.scores.map((entry) => entry.rank), [0, 1, 2]);
  assert.equal(result.model, MINI);
  assert.equal(result.queryId, "q1");
  assert.ok(result.usage.inputTokens > 10 && result.scoreType && result.requestId);
  assert.equal((await client.score(RERANKER, { text: "q" }, ITEMS)).queryId, null);
});

test("options of the server, and its warnings", async () => {
  const options = { topN: 1, returnDocuments: true, returnLogits: true, aTypingError: 1 };
  const result = await client.score(RERANKER, QUERY, [...ITEMS, { text: "rain ".repeat(500) }], { options });
  assert.equal(result.scores.length, 1);
  const [entry] = result.scores;
  assert.ok(entry?.document?.text && typeof entry.logit === "number");
  assert.ok(Math.abs(1 / (1 + Math.exp(-entry.logit)) - entry.score) < 1e-9);
  assert.ok(result.warnings?.some((warning) => warning.includes("a_typing_error")));
  const long = { longDocument: "chunk", chunkOverlap: 8 } as const;
  const [chunked] = (await client.score(RERANKER, QUERY, [{ text: "rain ".repeat(500) }], { options: long })).scores;
  assert.ok((chunked?.chunk?.count ?? 0) > 1);
});

test("encode returns one result for an item and a list for a list, for each kind of vector", async () => {
  const outputTypes = ["dense", "sparse", "multivector"] as const;
  const one = await client.encode(ENCODER, QUERY, { outputTypes, isQuery: true });
  const [first, second] = await client.encode(ENCODER, [QUERY, ...ITEMS], { outputTypes, isQuery: true });
  assert.equal(one.id, "q1");
  assert.ok(one.dense instanceof Float32Array && first?.dense && second?.dense);
  one.dense.forEach((value, index) => assert.ok(Math.abs(value - (first.dense?.[index] ?? NaN)) < 1e-5));
  assert.ok(Math.abs(Math.hypot(...one.dense) - 1) < 1e-5);
  assert.ok(one.sparse && one.sparse.indices.length === one.sparse.values.length && one.sparse.values.length > 0);
  assert.ok(one.multivector && one.multivector.length === one.numTokens && one.multivector[0] instanceof Float32Array);
});

test("number formats", async () => {
  const exact = (await client.encode(ENCODER, QUERY)).dense ?? [];
  const half = (await client.encode(ENCODER, QUERY, { outputDtype: "float16" })).dense;
  assert.ok(half instanceof Float32Array && half.every((value, i) => Math.abs(value - (exact[i] ?? NaN)) < 1e-3));
  const small = (await client.encode(ENCODER, QUERY, { outputDtype: "int8" })).dense;
  assert.ok(small instanceof Int8Array && small.every((value, i) => Math.abs(value / 127 - (exact[i] ?? NaN)) < 0.005));
  const bits = (await client.encode(ENCODER, QUERY, { outputDtype: "ubinary" })).dense;
  assert.ok(bits instanceof Uint8Array && bits.length * 8 === exact.length);
  assert.deepEqual((await client.encode(ENCODER, QUERY, { options: { dimensions: 8 } })).dense?.length, 8);
});

test("returned vectors can be sent: typed arrays, lists and maxsim in the client lead to the server's scores", async () => {
  const outputTypes = ["multivector"] as const;
  const fromText = await client.score(COLBERT, QUERY, ITEMS);
  const query = await client.encode(COLBERT, QUERY, { outputTypes, isQuery: true });
  const documents = await client.encode(COLBERT, ITEMS, { outputTypes });
  const typed = ITEMS.map(({ id }, i) => ({ id, multivector: documents[i]?.multivector ?? [] }));
  const lists = typed.map(({ id, multivector }) => ({ id, multivector: multivector.map((row) => Array.from(row)) }));
  const same = (scores: sie.ScoreEntry[]) =>
    fromText.scores.forEach((entry, i) => {
      assert.equal(scores[i]?.itemId, entry.itemId);
      assert.ok(Math.abs((scores[i]?.score ?? NaN) - entry.score) < 1e-4, `${scores[i]?.score} ${entry.score}`);
    });
  same((await client.score(COLBERT, QUERY, typed)).scores);
  same((await client.score(COLBERT, QUERY, lists)).scores);
  const own = sie.maxsimBatch(query.multivector ?? [], typed.map((item) => item.multivector));
  const ranked = own.map((score, i) => ({ itemId: ITEMS[i]?.id ?? `item-${i}`, score, rank: 0 }));
  same(ranked.sort((a, b) => b.score - a.score));
});

test("models", async () => {
  const listed = await client.listModels();
  const mini = listed.find((model) => model.name === MINI);
  assert.ok(mini?.loaded && mini.maxSequenceLength && mini.dims["dense"] === 384 && mini.lastError === null);
  assert.deepEqual(await client.getModel(MINI), mini);
});

test("errors arrive as their classes", async () => {
  const rejects = (call: Promise<unknown>, kind: typeof sie.SIEError, words: RegExp) =>
    assert.rejects(call, (error: Error) => error instanceof kind && error.name === kind.name && words.test(error.message));
  await rejects(client.score("BAAI/bge-reranker-v2-m4", QUERY, ITEMS), sie.ModelNotFoundError, /did you mean 'BAAI/);
  await rejects(client.getModel("nobody/nothing"), sie.ModelNotFoundError, /nobody/);
  await rejects(client.score(RERANKER, QUERY, [{ id: "no text" }]), sie.RequestError, /\$\.items\[0\]\.text/);
  await rejects(client.score(COLBERT, QUERY, [{ multivector: [Float32Array.of(1), Float32Array.of(1, 2)] }]), sie.RequestError, /differ in length or type/);
  await rejects(client.score("BAAI/bge-reranker-base", QUERY, ITEMS), sie.ModelLoadFailedError, /local directory/);
  const wrongKey = new sie.SIEClient(undefined, { apiKey: "not-the-key-at-all" });
  await rejects(wrongKey.listModels(), sie.AuthError, /does not know the API key/);
  await rejects(client.score(RERANKER, QUERY, ITEMS, { signal: AbortSignal.abort(new sie.SIEError("mine")) }), sie.SIEError, /mine/);
  assert.deepEqual(said, []); // client and server have the same version
});

test("many calls at once", async () => {
  const texts = Array.from({ length: 40 }, (_, i) => `rain falls on ${i} harbours`);
  const results = await Promise.all(texts.map((text) => client.score(RERANKER, { text }, ITEMS)));
  const alone = await client.score(RERANKER, { text: texts[7] }, ITEMS);
  assert.ok(results[7]?.scores.every((entry, i) => Math.abs(entry.score - (alone.scores[i]?.score ?? NaN)) < 1e-5));
});
