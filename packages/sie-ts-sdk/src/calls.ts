/** The endpoints: the request of each, and the reader of its answer. Pure functions. */

import { readEncode, readModel, readModels, readScore } from "./answers.js";
import { asArray, CodecError, encodeBody, isVector } from "./codec.js";
import { RequestError } from "./errors.js";
import { isMap } from "./failures.js";
import type { Reply, Request } from "./flow.js";
import { snake, snakeKeys } from "./names.js";
import type { EncodeOptions, EncodeResult, Item, ModelInfo, ScoreOptions, ScoreResult, WaitOptions } from "./types.js";

/** A request, the reader of its 200 answer (throws ProtocolError), and its time limits. */
export interface Call<Result> {
  request: Request;
  read(reply: Reply): Result;
  wait: WaitOptions;
  /** Milliseconds after which no attempt is worth starting. */
  giveUp?: number;
}

/** Receives warnings that a result has no field for. */
export type Warn = (message: string) => void;

const MSGPACK = "application/msgpack";
const JSON_TYPE = "application/json";
const WAIT = ["timeout", "deadline", "signal"];
const SCORE = [...WAIT, "instruction", "options"];
const ENCODE = [...SCORE, "outputTypes", "outputDtype", "isQuery"];

/** POST /v1/score/{model}. Throws RequestError for errors that are found before sending. */
export function score(model: string, query: Item, items: readonly Item[], options: ScoreOptions = {}): Call<ScoreResult> {
  checkOptions(options, SCORE);
  const body = {
    query: wireItem(query, "query"),
    items: wireItems(items),
    instruction: options.instruction,
    options: options.options && snakeKeys(options.options),
  };
  const ids = body.items.map((item, index) => idOf(item) ?? `item-${index}`);
  const asked = { queryId: idOf(body.query), ids, topN: options.options?.topN };
  const request = post("score", model, body);
  return { request, read: (reply) => readScore(reply, asked), wait: options, ...giveUp(options) };
}

/** POST /v1/encode/{model}; one result per item, in order. Throws RequestError as `score` does. */
export function encode(
  model: string,
  items: Item | readonly Item[],
  options: EncodeOptions = {},
  warn: Warn = () => {},
): Call<EncodeResult[]> {
  checkOptions(options, ENCODE);
  if (typeof options.outputTypes === "string")
    throw refused(`outputTypes is a string; pass a list: [${JSON.stringify(options.outputTypes)}]`);
  const params = {
    output_types: options.outputTypes,
    output_dtype: options.outputDtype,
    instruction: options.instruction,
    is_query: options.isQuery,
    options: options.options && snakeKeys(options.options),
  };
  const sent = wireItems(isMap(items) ? [items as Item] : items);
  return {
    request: post("encode", model, { items: sent, params }),
    read: (reply) => readEncode(reply, sent.map(idOf), warn),
    wait: options,
    ...giveUp(options),
  };
}

/** GET /v1/models. */
export function listModels(wait: WaitOptions = {}): Call<ModelInfo[]> {
  checkOptions(wait, WAIT);
  return { request: { method: "GET", path: "/v1/models", accept: JSON_TYPE }, read: readModels, wait };
}

/** GET /v1/models/{model}. */
export function getModel(model: string, wait: WaitOptions = {}): Call<ModelInfo> {
  checkOptions(wait, WAIT);
  return { request: { method: "GET", path: `/v1/models/${modelPath(model)}`, accept: JSON_TYPE }, read: readModel, wait };
}

/** Throw RequestError for an unknown option, so that typing errors are not ignored. */
export function checkOptions(options: object, known: readonly string[]): void {
  if (!isMap(options)) throw refused(`options is ${kindOf(options)}; pass an object`);
  for (const name of Object.keys(options))
    if (!known.includes(name))
      throw refused(`unknown option ${JSON.stringify(name)}; known: ${known.join(", ")}${hint(name, known)}`);
}

function hint(name: string, known: readonly string[]): string {
  const serverOption = known.includes("options") && !name.includes("_");
  if (known.some((other) => snake(other) === name)) return "; names are camelCase here";
  return serverOption ? `; pass options of the server as options: { ${name}: … }` : "";
}

function post(verb: string, model: string, body: unknown): Request {
  const path = `/v1/${verb}/${modelPath(model)}`;
  try {
    return { method: "POST", path, accept: MSGPACK, body: encodeBody(body), contentType: MSGPACK };
  } catch (error) {
    if (error instanceof CodecError) throw refused(`the request cannot be sent: ${error.message}`);
    throw error;
  }
}

/** Return the id percent-encoded, except for slashes (`org/name`) and colons (`model:adapter`). */
function modelPath(model: string): string {
  if (typeof model !== "string") throw refused(`model is ${kindOf(model)}; pass its id, a string`);
  const parts = model.split("/");
  // the path would be that of another route
  if (parts.some((part) => ["", ".", ".."].includes(part))) throw refused(`${JSON.stringify(model)} is not a model id`);
  return parts.map((part) => encodeURIComponent(wellFormed(part, "model")).replaceAll("%3A", ":")).join("/");
}

function wireItems(items: unknown): unknown[] {
  if (!Array.isArray(items)) throw refused(`items is ${kindOf(items)}; pass a list: [{ text: "…" }, …]`);
  if (items.length === 0) throw refused('items is empty; pass at least one { text: "…" }');
  return Array.from(items, (item, index) => wireItem(item, `items[${index}]`)); // includes holes, unlike map
}

function wireItem(item: unknown, where: string): unknown {
  if (!isMap(item)) throw refused(`${where} is ${kindOf(item)}; pass { text: "…" }`);
  if (typeof item["text"] === "string") wellFormed(item["text"], `${where}.text`);
  const vectors = item["multivector"];
  if (!Array.isArray(vectors)) return item;
  return { ...item, multivector: vectors.map((row) => (isVector(row) ? asArray(row) : row)) };
}

/** Throw RequestError for half of a surrogate pair, which UTF-8 cannot encode and an encoder would replace. */
function wellFormed(text: string, where: string): string {
  if (/\p{Surrogate}/u.test(text)) throw refused(`${where} contains half of a surrogate pair, which UTF-8 cannot encode`);
  return text;
}

function idOf(item: unknown): string | undefined {
  return ((item as { id?: string | null }).id ?? undefined) as string | undefined;
}

/** A request that the server refused because of its `deadlineMs` is not sent after it. */
function giveUp(options: ScoreOptions): { giveUp?: number } {
  const ms = options.options?.deadlineMs;
  return typeof ms === "number" ? { giveUp: ms } : {};
}

function kindOf(value: unknown): string {
  if (value === null || value === undefined) return String(value);
  return Array.isArray(value) ? "a list" : `a ${typeof value}`;
}

function refused(message: string): RequestError {
  return new RequestError(message, { code: "INVALID_INPUT" });
}
