/** Readers of 200 answers: they check the fields of the types and convert keys to camelCase. All throw ProtocolError. */

import type { Warn } from "./calls.js";
import { CodecError, decodeBody, type NdArray, toArray } from "./codec.js";
import { ProtocolError } from "./errors.js";
import { isMap, requestIdOf } from "./failures.js";
import type { Reply } from "./flow.js";
import { camelKeys } from "./names.js";
import type { EncodeResult, ModelInfo, ScoreResult, Vector } from "./types.js";

type Fields = Record<string, unknown>;
type Kind = "string" | "number" | "boolean" | "list" | "map";

/** The ids that an answer must have, and the largest number of entries. */
export interface Asked {
  queryId: string | undefined;
  ids: readonly string[];
  topN: unknown;
}

/** Read the answer of /v1/score, and check that it is one to `asked`: each item once, best first, with a finite score. */
export function readScore(reply: Reply, asked: Asked): ScoreResult {
  const reader = new Reader(reply);
  const body = reader.msgpack();
  reader.get(body, "model", "string");
  const entries = reader.get(body, "scores", "list") as unknown[];
  const unseen = new Map<unknown, number>();
  for (const id of asked.ids) unseen.set(id, (unseen.get(id) ?? 0) + 1);
  entries.forEach((entry, index) => {
    const where = `scores[${index}].`;
    const itemId = reader.get(entry, "item_id", "string", where);
    const score = reader.get(entry, "score", "number", where);
    const rank = reader.get(entry, "rank", "number", where);
    const left = unseen.get(itemId) ?? 0;
    const shown = JSON.stringify(itemId);
    if (left === 0) throw reader.broken(`\`${where}item_id\` is ${shown}, which was not sent or is already ranked`);
    if (!Number.isFinite(score)) throw reader.broken(`\`${where}score\` is ${score}`);
    if (rank !== index) throw reader.broken(`\`${where}rank\` is ${rank}, not ${index}`);
    unseen.set(itemId, left - 1);
  });
  const limits = [asked.topN, body["top_n"]].filter((value) => typeof value === "number");
  // the server refuses such a request
  if (limits.some((limit) => limit < 1)) throw reader.broken(`\`top_n\` is ${Math.min(...limits)}`);
  const expected = Math.min(asked.ids.length - countPruned(reader, body, unseen), ...limits);
  if (entries.length !== expected)
    throw reader.broken(`${entries.length} scores for ${expected} of ${asked.ids.length} items`);
  const queryId = body["query_id"];
  if (asked.queryId !== undefined && isPresent(queryId) && queryId !== asked.queryId)
    throw reader.broken(`\`query_id\` is ${JSON.stringify(queryId)}, not ${JSON.stringify(asked.queryId)}`);
  return { ...(camelKeys(body) as ScoreResult), ...reader.requestId };
}

/** Return how many items the stages of a cascade have pruned; each must be unranked. */
function countPruned(reader: Reader, body: Record<string, unknown>, unseen: Map<unknown, number>): number {
  if (!isPresent(body["stages"])) return 0;
  let count = 0;
  (reader.get(body, "stages", "list") as unknown[]).forEach((stage, place) => {
    for (const itemId of reader.get(stage, "pruned", "list", `stages[${place}].`) as unknown[]) {
      const left = unseen.get(itemId) ?? 0;
      if (left === 0)
        throw reader.broken(`\`stages[${place}].pruned\` has ${JSON.stringify(itemId)}, which was not sent or is ranked`);
      unseen.set(itemId, left - 1);
      count++;
    }
  });
  return count;
}

/** Read the answer of /v1/encode: one result for each of the items with these ids. */
export function readEncode(reply: Reply, ids: readonly (string | undefined)[], warn: Warn): EncodeResult[] {
  const reader = new Reader(reply);
  const body = reader.msgpack();
  const items = reader.get(body, "items", "list") as unknown[];
  if (items.length !== ids.length) throw reader.broken(`${items.length} results for ${ids.length} items`);
  // the results are vectors and have no field for warnings
  for (const warning of Array.isArray(body["warnings"]) ? body["warnings"] : []) warn(`encode: ${warning}`);
  return items.map((item, index) => {
    const result = readVectors(reader, item, `items[${index}].`);
    const [asked, found] = [ids[index], result.id ?? undefined];
    if (asked !== undefined && found !== undefined && found !== asked)
      throw reader.broken(`\`items[${index}].id\` is ${JSON.stringify(found)}, not ${JSON.stringify(asked)}`);
    return result;
  });
}

/** Read the answer of /v1/models/{model}. */
export function readModel(reply: Reply): ModelInfo {
  const reader = new Reader(reply);
  return readInfo(reader, reader.json(), "");
}

/** Read the answer of /v1/models. */
export function readModels(reply: Reply): ModelInfo[] {
  const reader = new Reader(reply);
  const models = reader.get(reader.json(), "models", "list") as unknown[];
  return models.map((model, index) => readInfo(reader, model, `models[${index}].`));
}

function readInfo(reader: Reader, model: unknown, where: string): ModelInfo {
  reader.get(model, "name", "string", where);
  reader.get(model, "loaded", "boolean", where);
  reader.get(model, "inputs", "list", where);
  reader.get(model, "outputs", "list", where);
  const { dims, ...rest } = model as Fields;
  // the keys of `dims` are names of outputs and are not converted
  return { ...(camelKeys(rest) as ModelInfo), dims: (dims ?? {}) as ModelInfo["dims"] };
}

/** Replace each `{dims, dtype, values}` by its values. */
function readVectors(reader: Reader, item: unknown, where: string): EncodeResult {
  const { dense, sparse, multivector, ...rest } = reader.map(item, where);
  const result: EncodeResult = { ...(camelKeys(rest) as EncodeResult), ...reader.requestId };
  if (isPresent(dense)) result.dense = reader.array(dense, "values", 1, `${where}dense.`).values;
  if (isPresent(sparse)) {
    const [indices, values] = ["indices", "values"].map((part) => reader.array(sparse, part, 1, `${where}sparse.`).values);
    result.sparse = { indices: indices as Vector, values: values as Vector };
  }
  if (isPresent(multivector)) {
    result.multivector = rowsOf(reader.array(multivector, "values", 2, `${where}multivector.`));
    result.numTokens = result.multivector.length;
  }
  return result;
}

function isPresent(value: unknown): boolean {
  return value !== undefined && value !== null;
}

function rowsOf({ shape, values }: NdArray): Vector[] {
  const [rows = 0, width = 0] = shape;
  return Array.from({ length: rows }, (_, row) => values.subarray(row * width, (row + 1) * width));
}

/** Reads the fields of an answer and reports those that are missing or malformed. */
class Reader {
  readonly requestId: { requestId?: string };

  constructor(private readonly reply: Reply) {
    const requestId = requestIdOf(reply);
    this.requestId = requestId === undefined ? {} : { requestId };
  }

  msgpack(): Fields {
    return this.decoded("application/msgpack", decodeBody);
  }

  json(): Fields {
    return this.decoded("application/json", (body) => JSON.parse(new TextDecoder().decode(body)));
  }

  map(value: unknown, where: string): Fields {
    if (!isMap(value)) throw this.broken(`\`${where.replace(/\.$/, "")}\` is ${kindOf(value)}, not a map`);
    return value;
  }

  /** Return `value[key]` if it has the given kind. */
  get(value: unknown, key: string, kind: Kind, where = ""): unknown {
    const map = this.map(value, where);
    if (!(key in map)) throw this.broken(`the answer has no \`${where}${key}\``);
    if (kindOf(map[key]) !== kind) throw this.broken(`\`${where}${key}\` is ${kindOf(map[key])}, not ${kind}`);
    return map[key];
  }

  /** Return `value[key]` as an array of `dimensions` dimensions. */
  array(value: unknown, key: string, dimensions: number, where: string): NdArray {
    try {
      const array = toArray(this.get(value, key, "map", where));
      if (array.values instanceof Float32Array || array.values instanceof Float64Array)
        if (!array.values.every(Number.isFinite)) throw new CodecError("values that are not finite");
      if (array.shape.length === dimensions) return array;
      throw new CodecError(`shape [${array.shape}]; expected ${dimensions} dimensions`);
    } catch (error) {
      throw error instanceof CodecError ? this.broken(`\`${where}${key}\`: ${error.message}`) : error;
    }
  }

  broken(message: string): ProtocolError {
    return new ProtocolError(message, { status: this.reply.status, ...this.requestId });
  }

  private decoded(mediaType: string, decode: (body: Uint8Array) => unknown): Fields {
    let value: unknown;
    try {
      value = decode(this.reply.body);
    } catch (error) {
      const found = this.reply.headers.get("content-type") ?? "none";
      const reason = error instanceof Error ? error.message : String(error);
      throw this.broken(`the answer is not valid ${mediaType} (${reason}); its content type: ${found}`);
    }
    if (!isMap(value)) throw this.broken(`the answer is ${kindOf(value)}, not a map`);
    return value;
  }
}

function kindOf(value: unknown): string {
  if (Array.isArray(value)) return "list";
  if (isMap(value)) return "map";
  return value === null ? "null" : typeof value;
}
