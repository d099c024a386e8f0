/** Requests, errors before sending, and responses that do not follow docs/http-api.md. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { decode, encode as pack } from "@msgpack/msgpack";
import * as calls from "../../src/calls.js";
import type { Reply } from "../../src/flow.js";
import { ProtocolError, RequestError, SIEClient, type Item, maxsim, maxsimBatch, VERSION } from "../../src/index.js";
import { skewed } from "../../src/settings.js";

const ITEMS = [{ id: "a", text: "x" }];
const any = (value: unknown) => value as never;
const answer = (body: Uint8Array): Reply => ({ kind: "reply", status: 200, headers: new Map([["x-sie-request-id", "r"]]), body });

test("a score request has the keys of docs/http-api.md", () => {
  const options = { topN: 2, returnDocuments: true, lora: "a" };
  const { request } = calls.score("org/na me:ad", { text: "q" }, ITEMS, { instruction: "find", options });
  assert.equal(request.path, "/v1/score/org/na%20me:ad");
  const sent = { query: { text: "q" }, items: ITEMS, instruction: "find", options: { top_n: 2, return_documents: true, lora: "a" } };
  assert.deepEqual(decode(request.body as Uint8Array), sent);
});

test("an encode request has the keys of docs/http-api.md", () => {
  const { request } = calls.encode("m", ITEMS[0] as Item, { outputTypes: ["dense"], outputDtype: "int8", isQuery: true });
  const params = { output_types: ["dense"], output_dtype: "int8", is_query: true };
  assert.deepEqual(decode(request.body as Uint8Array), { items: ITEMS, params });
});

test("invalid requests are rejected before sending, with the name of the field", () => {
  const refused = (call: () => unknown, words: RegExp) =>
    assert.throws(call, (error: Error) => error instanceof RequestError && words.test(error.message));
  refused(() => calls.score("m", any("text"), ITEMS), /query is a string; pass \{ text/);
  refused(() => calls.score("m", { text: "q" }, any(["text"])), /items\[0\] is a string/);
  refused(() => calls.score("m", { text: "q" }, any(Array(1))), /items\[0\] is undefined/);
  refused(() => calls.score("m", { text: "q" }, []), /items is empty/);
  refused(() => calls.score("m", { text: "q" }, any({ text: "x" })), /items is a object; pass a list/);
  refused(() => calls.score("m", { text: "\ud800" }, ITEMS), /query\.text contains half of a surrogate pair/);
  refused(() => calls.score("../m", { text: "q" }, ITEMS), /is not a model id/);
  refused(() => calls.score(any(undefined), { text: "q" }, ITEMS), /model is undefined/);
  refused(() => calls.score("m", { text: "q" }, ITEMS, any({ topN: 1 })), /unknown option "topN".*options: \{ topN/);
  refused(() => calls.encode("m", ITEMS, any({ is_query: true })), /camelCase/);
  refused(() => calls.encode("m", ITEMS, { outputTypes: any("dense") }), /pass a list: \["dense"\]/);
  refused(() => calls.score("m", { text: "q", metadata: { f: () => 1 } }, ITEMS), /cannot be sent/);
});

test("invalid settings are rejected by the constructor", () => {
  for (const url of ["localhost:8080", "ftp://x", "nonsense", "http://u:p@x", "http://x/?a=1"])
    assert.throws(() => new SIEClient(url), TypeError, url);
  for (const timeout of [0, -1, NaN, Infinity, any("5")]) assert.throws(() => new SIEClient("http://x", { timeout }), TypeError);
  assert.throws(() => new SIEClient("http://x", { apiKey: "schlüssel" }), /an HTTP header cannot hold/);
  assert.throws(() => new SIEClient("http://x", any({ timeoutMs: 5 })), /unknown option "timeoutMs"; known: apiKey/);
});

test("a malformed response is a ProtocolError that names what is missing", () => {
  const entry = { item_id: "a", score: 1, rank: 0 };
  const { read } = calls.score("m", { text: "q" }, ITEMS);
  assert.deepEqual(read(answer(pack({ model: "m", query_id: null, scores: [entry], later_key: [{ a_b: 1 }] }))), {
    model: "m", queryId: null, scores: [{ itemId: "a", score: 1, rank: 0 }], laterKey: [{ aB: 1 }], requestId: "r",
  });
  const broken = (body: unknown, words: RegExp) =>
    assert.throws(() => read(answer(pack(body))), (error: Error) => error instanceof ProtocolError && words.test(error.message));
  broken({ scores: [entry] }, /the answer has no `model`/);
  broken({ model: "m", scores: [{ ...entry, score: "1" }] }, /`scores\[0\]\.score` is string, not number/);
  broken({ model: "m", scores: [entry, 1] }, /`scores\[1\]` is number, not a map/);
  broken([], /the answer is list, not a map/);
  assert.throws(() => read(answer(Uint8Array.of(0x80, 0))), /not valid application\/msgpack.*content type: none/);
  const encoded = calls.encode("m", [...ITEMS, ...ITEMS]);
  assert.throws(() => encoded.read(answer(pack({ items: [{}] }))), /1 results for 2 items/);
  const noArray = pack({ items: [{}, { dense: { values: [1, 2] } }] });
  assert.throws(() => encoded.read(answer(noArray)), /`items\[1\]\.dense\.values` is list, not map/);
});

test("an answer is accepted by the rules of the Python client", () => {
  const rules = JSON.parse(readFileSync("../../tests/support/requests/answers.json", "utf8"));
  const items = rules.ids.map((id: string | null) => (id === null ? { text: "t" } : { id, text: "t" }));
  assert.ok(rules.cases.length > 15);
  for (const { name, scores, names, options, more } of rules.cases) {
    const entries = scores.map(([item_id, score, rank]: [string, number | string, number]) => ({ item_id, score: Number(score), rank }));
    const body = pack({ model: "m", query_id: rules.query_id, scores: entries, ...more });
    const { read } = calls.score("m", { id: rules.query_id, text: "q" }, items, { options: options && { topN: options.top_n } });
    if (names === null) assert.equal(read(answer(body)).scores.length, entries.length, name);
    else
      assert.throws(() => read(answer(body)), (error: Error) => error instanceof ProtocolError && error.message.includes(names), name);
  }
  const vectors = calls.encode("m", [{ id: "a", text: "t" }]);
  assert.throws(() => vectors.read(answer(pack({ items: [{ id: "b" }] }))), /`items\[0\]\.id` is "b", not "a"/);
});

test("maxsim", () => {
  const query = [Float32Array.of(1, 0), [0, 2]];
  assert.equal(maxsim(query, [[1, 0], [0, 1], [0.5, 3]]), 7);
  assert.deepEqual(maxsimBatch(query, [[[1, 0]], [[-1, -1]]]), [1, -3]);
  assert.throws(() => maxsimBatch(query, [[[1, 0]], [[1]]]), /query vectors are 2 wide, those of document 1 1/);
  assert.throws(() => maxsim(query, []), /document 0 is not/);
  assert.ok(Number.isNaN(maxsim([[1]], [[NaN], [1]])) && Number.isNaN(maxsim([[1]], [[1], [NaN]])));
});

test("versions", () => {
  assert.equal(VERSION, JSON.parse(readFileSync("package.json", "utf8")).version);
  assert.deepEqual([skewed("0.1.0", "0.2.9"), skewed("0.1.0", "0.3.0"), skewed("0.1.0", "1.1.0"), skewed("0.1.0", "?")], [false, true, true, false]);
});
