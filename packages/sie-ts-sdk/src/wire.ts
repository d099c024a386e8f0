/** The types on the wire. Generated from the server's OpenAPI document by scripts/generate_ts_types.py. */

export interface AdapterInfo {
  name: string;
  source: string;
  loaded: boolean;
  progress?: LoadProgress | null;
}

export interface ChunkSpan {
  start: number;
  end: number;
  index: number;
  count: number;
}

export interface DenseVector {
  dims: number;
  dtype: string;
  values: unknown;
}

export interface Document {
  text: string;
}

export interface EncodeParams {
  output_types?: ("dense" | "multivector" | "sparse")[] | null;
  output_dtype?: "binary" | "float16" | "float32" | "int8" | "ubinary" | "uint8" | null;
  instruction?: string | null;
  is_query?: boolean | null;
  options?: Record<string, unknown> | null;
}

export interface EncodeRequest {
  items: Item[];
  params?: EncodeParams | null;
}

export interface EncodeResponse {
  model: string;
  items: EncodedItem[];
  timing: Timing;
  usage: Usage;
  warnings?: string[];
}

export interface EncodedItem {
  id?: string;
  dense?: DenseVector;
  sparse?: SparseVector;
  multivector?: MultiVector;
  truncated?: boolean;
}

export interface ErrorBody {
  detail: ErrorDetail;
  error: ErrorDetail;
  code: string;
}

export interface ErrorDetail {
  code: string;
  message: string;
  error_class?: string;
  permanent?: boolean;
  attempts?: number;
}

export interface InspectResponse {
  model: string;
  max_seq_length: number;
  query_truncated: boolean;
  items: InspectedText[];
  query?: InspectedText;
  query_tokens?: QueryTokens;
}

export interface InspectedPassage {
  item_id: string;
  position: number;
  truncated: boolean;
}

export interface InspectedText {
  item_id: string | null;
  text: string;
  token_ids: number[];
  tokens: string[];
  readout: "all" | "first" | "last" | "marked";
  truncated: boolean;
  position?: number;
  passages?: InspectedPassage[];
  read_to?: number;
  chunk?: ChunkSpan;
  token_scores?: TokenScores;
}

export interface Item {
  id?: string | null;
  text?: string | null;
  metadata?: Record<string, unknown> | null;
  multivector?: unknown;
  images?: unknown;
  audio?: unknown;
  video?: unknown;
  document?: unknown;
}

export interface LoadProgress {
  phase: "fetch" | "load" | "measure" | "probe" | "replay" | "room";
  seconds: number;
  bytes_done: number;
  bytes_total: number | null;
}

export interface ModelEntry {
  id: string;
  object?: "model";
  created: number;
  owned_by: string;
  root: string;
  parent?: string | null;
  max_model_len: number | null;
  model_type: "embedding" | "rerank" | null;
}

export interface ModelInfo {
  name: string;
  inputs: string[];
  outputs: string[];
  dims: Record<string, number>;
  loaded: boolean;
  state: "available" | "failed" | "loaded" | "loading" | "unloading";
  last_error: string | null;
  max_sequence_length: number | null;
  profiles: string[];
  revision: string | null;
  license?: string | null;
  description?: string | null;
  compat?: boolean;
  warning?: string | null;
  source?: string | null;
  pinned?: boolean;
  memory_bytes?: number;
  progress?: LoadProgress | null;
  adapters?: AdapterInfo[];
  aliases?: string[];
  stages?: StageInfo[];
  id: string;
  object?: "model";
  created: number;
  owned_by: string;
  root: string;
  parent?: string | null;
  max_model_len: number | null;
  model_type: "embedding" | "rerank" | null;
}

export interface ModelList {
  models: ModelInfo[];
  data: ModelEntry[];
  object?: "list";
}

export interface MultiVector {
  token_dims: number;
  num_tokens: number;
  dtype: string;
  values: unknown;
}

export interface Options {
  profile?: string | null;
  instruction?: string | null;
  max_seq_length?: number | null;
  top_n?: number | null;
  lora?: string | null;
  lora_id?: string | null;
  is_query?: boolean | null;
  priority?: "bulk" | "interactive" | null;
  deadline_ms?: number | null;
  dimensions?: number | null;
  normalize?: "calibrated" | "none" | "sigmoid" | null;
  score_mode?: "dense" | "multivector" | "sparse" | "weighted" | null;
  score_weights?: number[] | null;
  cutoff_layer?: number | null;
  compress_ratio?: number | null;
  return_documents?: boolean | null;
  return_logits?: boolean | null;
  long_document?: "chunk" | "refuse" | "truncate" | null;
  chunk_overlap?: number | null;
  max_document_tokens?: number | null;
  aggregate?: "max" | "mean" | null;
  token_scores?: boolean | null;
}

export interface QueryTokens {
  positions: number[];
  weights: number[];
}

export interface ScoreEntry {
  item_id: string;
  score: number;
  rank: number;
  truncated?: boolean;
  logit?: number;
  chunk?: ChunkSpan;
  document?: Document;
}

export interface ScoreRequest {
  query: Item;
  items: Item[];
  instruction?: string | null;
  options?: Record<string, unknown> | null;
}

export interface ScoreResponse {
  model: string;
  query_id: string | null;
  scores: ScoreEntry[];
  usage: Usage;
  score_type: "cosine" | "dot" | "logit" | "maxsim" | "probability";
  query_truncated?: boolean;
  warnings?: string[];
  top_n?: number;
  stages?: StageReport[];
}

export interface SparseVector {
  dims: number;
  dtype: string;
  indices: unknown;
  values: unknown;
}

export interface StageInfo {
  model: string;
  keep?: number | null;
}

export interface StageReport {
  model: string;
  input_tokens: number;
  pruned: string[];
}

export interface Timing {
  total_ms: number;
  queue_ms: number;
  tokenization_ms: number;
  inference_ms: number;
}

export interface TokenScores {
  positions: number[];
  similarities: number[][];
  score: number;
  pooled?: number;
}

export interface Usage {
  input_tokens: number;
}
