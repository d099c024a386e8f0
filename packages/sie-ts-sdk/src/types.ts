/**
 * Types of arguments and results: plain objects with camelCase keys.
 *
 * They are written by hand and compared with wire.ts, which is generated from the server (test/contract.ts). Keys from
 * newer servers are kept in results, also in camelCase.
 */

/** A typed array of numbers. Half floats are returned as Float32Array. */
export type Vector =
  | Float32Array
  | Float64Array
  | Int8Array
  | Int16Array
  | Int32Array
  | Uint8Array
  | Uint16Array
  | Uint32Array;

export type OutputType = "dense" | "sparse" | "multivector";
export type OutputDtype = "float32" | "float16" | "int8" | "uint8" | "binary" | "ubinary";

/** A query or a document. Null and absent mean the same; `""` is valid text; ids need not be unique. */
export interface Item {
  id?: string | null;
  text?: string | null;
  /** Token vectors, [tokens][width], instead of text; late-interaction models only. */
  multivector?: readonly (Vector | readonly number[])[] | null;
  metadata?: Readonly<Record<string, unknown>> | null;
  // Other modalities, which text models reject with a RequestError.
  images?: unknown;
  audio?: unknown;
  video?: unknown;
  document?: unknown;
}

/** Options of the server for one request; unknown ones are reported in `warnings`. */
export interface ServerOptions {
  profile?: string | null;
  instruction?: string | null;
  /** The number of tokens that a model reads per text or pair. */
  maxSeqLength?: number | null;
  /** Score: return only the best n entries. */
  topN?: number | null;
  /** LoRA adapter; the same as MODEL:ADAPTER instead of the model's id. */
  lora?: string | null;
  /** An alias of `lora`. */
  loraId?: string | null;
  /** Encode: the texts are queries. */
  isQuery?: boolean | null;
  /** Lane in the queue; default: bulk for requests of more than four batches. */
  priority?: "interactive" | "bulk" | null;
  /** Milliseconds in which the caller can use the answer; longer requests are rejected. */
  deadlineMs?: number | null;
  /** Encode: truncate vectors to their first dimensions (Matryoshka). */
  dimensions?: number | null;
  /** Score: raw values, the sigmoid of logits, or calibrated probabilities; the checkpoint's activation if absent. */
  normalize?: "none" | "sigmoid" | "calibrated" | null;
  /** Score, bge-m3: the similarity. */
  scoreMode?: "dense" | "sparse" | "multivector" | "weighted" | null;
  /** Score, bge-m3: weights of dense, sparse, multivector. */
  scoreWeights?: number[] | null;
  /** Score, layerwise rerankers: the layer after which the score is read. */
  cutoffLayer?: number | null;
  /** Score, bge-reranker-v2.5-gemma2-lightweight: only 1 is served. */
  compressRatio?: number | null;
  /** Score: add the text to each entry. */
  returnDocuments?: boolean | null;
  /** Score: add the raw logit to each entry. */
  returnLogits?: boolean | null;
  /** Score: truncate long documents (default), score them in overlapping windows, or reject them. */
  longDocument?: "truncate" | "chunk" | "refuse" | null;
  /** Score: the number of tokens that neighbouring windows share. */
  chunkOverlap?: number | null;
  /** Score: the largest number of tokens that are read of each document. */
  maxDocumentTokens?: number | null;
  /** Score: how the scores of windows are combined. */
  aggregate?: "max" | "mean" | null;
  readonly [later: string]: unknown;
}

/** Time limits of one call in milliseconds; the client's settings if absent. */
export interface WaitOptions {
  /** Longest silence of the server in one attempt. */
  timeout?: number;
  /** All attempts and the waits between them. */
  deadline?: number;
  /** Ends the call; it rejects with the signal's reason. */
  signal?: AbortSignal;
}

/** Options of `score`. */
export interface ScoreOptions extends WaitOptions {
  /** Overrides `options.instruction`, which overrides the profile's. */
  instruction?: string;
  options?: ServerOptions;
}

/** Options of `encode`. */
export interface EncodeOptions extends ScoreOptions {
  /** Kinds of vector; the model's default if absent. */
  outputTypes?: readonly OutputType[];
  /** The number format of the vectors. */
  outputDtype?: OutputDtype;
  /** Encode as a query instead of a document. */
  isQuery?: boolean;
}

/** The number of tokens that a request used. */
export interface Usage {
  inputTokens: number;
}

/** A window of a text: characters [start, end), and its index among `count` windows. */
export interface ChunkSpan {
  start: number;
  end: number;
  index: number;
  count: number;
}

/** A document's score and rank. */
export interface ScoreEntry {
  /** The item's id, else `item-{index}`. */
  itemId: string;
  /** Higher is more relevant; the scale depends on the model. */
  score: number;
  /** 0 is most relevant. */
  rank: number;
  /** True when the text was truncated to the model's window. */
  truncated?: boolean;
  /** The raw value, with `returnLogits`. */
  logit?: number;
  /** A long document's best window, with `longDocument: "chunk"`. */
  chunk?: ChunkSpan;
  /** With `returnDocuments`. */
  document?: { text: string };
}

/** A stage of a cascade. */
export interface StageReport {
  model: string;
  /** 0 if the stage had nothing to prune. */
  inputTokens: number;
  /** `itemId` of the documents that the next stage did not read, by descending relevance for this stage. */
  pruned: string[];
}

/** `scores` is sorted by relevance; ties keep the order in which the items were passed. */
export interface ScoreResult {
  model: string;
  queryId: string | null;
  scores: ScoreEntry[];
  usage: Usage;
  scoreType: "logit" | "probability" | "maxsim" | "cosine" | "dot";
  /** True when the query was truncated, in any pair of a cross-encoder. */
  queryTruncated?: boolean;
  /** Unknown options, truncated texts. */
  warnings?: string[];
  /** The `topN` of the request or its profile, if it left documents out. */
  topN?: number;
  /** Of a cascade; `scores` has the documents of the last stage only. */
  stages?: StageReport[];
  /** X-SIE-Request-ID, which identifies the request in the server's logs. */
  requestId?: string;
}

/** The non-zero entries of a vector. */
export interface SparseVector {
  indices: Vector;
  values: Vector;
}

/** The requested vectors of an item. */
export interface EncodeResult {
  id?: string;
  /** [width]; packed bits for binary and ubinary. */
  dense?: Vector;
  sparse?: SparseVector;
  /** [numTokens][width]; the rows share one buffer. */
  multivector?: Vector[];
  /** Rows of `multivector`. */
  numTokens?: number;
  /** True when the text was truncated to the model's window. */
  truncated?: boolean;
  requestId?: string;
}

/** The progress of a load; bytes are those of the model's tensors. */
export interface LoadProgress {
  phase: "fetch" | "room" | "load" | "measure" | "probe" | "replay";
  seconds: number;
  bytesDone: number;
  bytesTotal: number | null;
}

/** A LoRA adapter, which is loaded on first use. */
export interface AdapterInfo {
  name: string;
  source: string;
  loaded: boolean;
  progress?: LoadProgress | null;
}

/** The server's description of a model. */
export interface ModelInfo {
  name: string;
  inputs: string[];
  outputs: string[];
  dims: Record<string, number>;
  loaded: boolean;
  state: "available" | "loading" | "loaded" | "unloading" | "failed";
  lastError: string | null;
  /** In tokens. */
  maxSequenceLength: number | null;
  profiles: string[];
  revision: string | null;
  license?: string | null;
  description?: string | null;
  compat?: boolean;
  /** A reason to doubt the scores of this checkpoint, or the update that it lacks. */
  warning?: string | null;
  source?: string | null;
  pinned?: boolean;
  memoryBytes?: number;
  progress?: LoadProgress | null;
  /** LoRA adapters that requests may name. */
  adapters?: AdapterInfo[];
  /** Other names of the same model. */
  aliases?: string[];
  /** Of a cascade: its models, and how many documents each keeps for the next one. */
  stages?: { model: string; keep?: number | null }[];
  /** The fields from here on are those of OpenAI's model objects and of servers like vLLM. */
  id: string;
  object?: "model";
  created: number;
  ownedBy: string;
  root: string;
  parent?: string | null;
  maxModelLen: number | null;
  modelType: "embedding" | "rerank" | null;
}
