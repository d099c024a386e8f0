/**
 * What callers pass in and get back: plain objects, camelCase.
 *
 * Written by hand and checked against wire.ts, which is made from the server (test/contract.ts). Keys that a server adds
 * later are kept in results, in camelCase, too.
 */

/** Numbers of one kind. Half floats arrive as Float32Array. */
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

/** A query or a document. Null and absent mean the same; `""` is legal text; ids need not be unique. */
export interface Item {
  id?: string | null;
  text?: string | null;
  /** Token vectors, [tokens][width], in place of text; late-interaction models only. */
  multivector?: readonly (Vector | readonly number[])[] | null;
  metadata?: Readonly<Record<string, unknown>> | null;
  // Other modalities: text models refuse them with a RequestError that says so.
  images?: unknown;
  audio?: unknown;
  video?: unknown;
  document?: unknown;
}

/** Options of the server for one request; one that it does not know comes back in `warnings`. */
export interface ServerOptions {
  profile?: string | null;
  instruction?: string | null;
  /** Tokens a model reads per text or pair. */
  maxSeqLength?: number | null;
  /** Score: return only the best n entries. */
  topN?: number | null;
  /** LoRA adapter to read with; the same as MODEL:ADAPTER in place of the model's id. */
  lora?: string | null;
  /** Another name of `lora`. */
  loraId?: string | null;
  /** Encode: the texts are queries. */
  isQuery?: boolean | null;
  /** Encode: cut vectors to their first dimensions (Matryoshka). */
  dimensions?: number | null;
  /** Score: raw logits, or their sigmoid; the checkpoint's activation if absent. */
  normalize?: "none" | "sigmoid" | null;
  /** Score, bge-m3: which similarity. */
  scoreMode?: "dense" | "sparse" | "multivector" | "weighted" | null;
  /** Score, bge-m3: weights of dense, sparse, multivector. */
  scoreWeights?: number[] | null;
  /** Score, layerwise rerankers: the layer after which the score is read. */
  cutoffLayer?: number | null;
  /** Score, bge-reranker-v2.5-gemma2-lightweight: only 1 is served. */
  compressRatio?: number | null;
  /** Score: each entry carries its text. */
  returnDocuments?: boolean | null;
  /** Score: each entry carries its raw logit. */
  returnLogits?: boolean | null;
  /** Score: cut what is too long (default), score it in overlapping windows, or refuse it. */
  longDocument?: "truncate" | "chunk" | "refuse" | null;
  /** Score: tokens that neighbouring windows share. */
  chunkOverlap?: number | null;
  /** Score: tokens of each document that are read at most. */
  maxDocumentTokens?: number | null;
  /** Score: how windows make a document's score. */
  aggregate?: "max" | "mean" | null;
  readonly [later: string]: unknown;
}

/** How long one call may take, in milliseconds; the client's own settings if absent. */
export interface WaitOptions {
  /** Longest silence of the server in one attempt. */
  timeout?: number;
  /** All attempts and the waits between them. */
  deadline?: number;
  /** Ends the call; it rejects with the signal's reason. */
  signal?: AbortSignal;
}

/** What `score` takes besides model, query and items. */
export interface ScoreOptions extends WaitOptions {
  /** Beats `options.instruction`, which beats the profile's. */
  instruction?: string;
  options?: ServerOptions;
}

/** What `encode` takes besides model and items. */
export interface EncodeOptions extends ScoreOptions {
  /** Kinds of vector; the model's default if absent. */
  outputTypes?: readonly OutputType[];
  /** The number format of the vectors. */
  outputDtype?: OutputDtype;
  /** Encode as a query rather than a document. */
  isQuery?: boolean;
}

/** What a request cost. */
export interface Usage {
  inputTokens: number;
}

/** Characters [start, end) of the text, and which window of `count` they are. */
export interface ChunkSpan {
  start: number;
  end: number;
  index: number;
  count: number;
}

/** One document's place in the ranking. */
export interface ScoreEntry {
  /** The item's id, else `item-{index}`. */
  itemId: string;
  /** Higher is more relevant; the scale is the model's. */
  score: number;
  /** 0 is most relevant. */
  rank: number;
  /** True when the text was cut to the model's window. */
  truncated?: boolean;
  /** The raw value, with `returnLogits`. */
  logit?: number;
  /** A long document's best window, with `longDocument: "chunk"`. */
  chunk?: ChunkSpan;
  /** With `returnDocuments`. */
  document?: { text: string };
}

/** `scores` is sorted by relevance; ties keep the order in which the items were passed. */
export interface ScoreResult {
  model: string;
  queryId: string | null;
  scores: ScoreEntry[];
  usage: Usage;
  scoreType: "logit" | "probability" | "maxsim" | "cosine" | "dot";
  /** Unknown options, cut texts. */
  warnings?: string[];
  /** From X-SIE-Request-ID: quote it when asking about a request. */
  requestId?: string;
}

/** The non-zero entries of a vector. */
export interface SparseVector {
  indices: Vector;
  values: Vector;
}

/** One item's vectors, of the kinds asked for. */
export interface EncodeResult {
  id?: string;
  /** [width]; packed bits for binary and ubinary. */
  dense?: Vector;
  sparse?: SparseVector;
  /** [numTokens][width]; the rows share one buffer. */
  multivector?: Vector[];
  /** Rows of `multivector`. */
  numTokens?: number;
  /** True when the text was cut to the model's window. */
  truncated?: boolean;
  requestId?: string;
}

/** How far a load is; bytes are those of the model's tensors. */
export interface LoadProgress {
  phase: "fetch" | "room" | "load" | "measure" | "probe";
  seconds: number;
  bytesDone: number;
  bytesTotal: number | null;
}

/** A LoRA adapter; one that is not loaded is on first use. */
export interface AdapterInfo {
  name: string;
  source: string;
  loaded: boolean;
}

/** What the server says about a model it can serve. Asking never loads it. */
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
  source?: string | null;
  pinned?: boolean;
  memoryBytes?: number;
  progress?: LoadProgress | null;
  /** LoRA adapters that requests may name. */
  adapters?: AdapterInfo[];
}
