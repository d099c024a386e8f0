/**
 * Client of SIE, a self-hosted inference engine for reranking, for Node 20 or newer and browsers.
 *
 *     const client = new SIEClient("http://localhost:8080");
 *     const result = await client.score("BAAI/bge-reranker-v2-m3", { text: "query" }, [{ text: "document" }]);
 */

export { SIEClient } from "./client.js";
export {
  AuthError,
  InferenceError,
  InputTooLongError,
  ModelLoadFailedError,
  ModelLoadingError,
  ModelNotFoundError,
  ProtocolError,
  QueueFullError,
  RateLimitedError,
  RequestError,
  ResourceExhaustedError,
  ServerError,
  SIEConnectionError,
  SIEError,
  SIETimeoutError,
} from "./errors.js";
export { maxsim, maxsimBatch, type TokenVectors } from "./scoring.js";
export type { ClientOptions, TraceContext } from "./settings.js";
export type * from "./types.js";
export { VERSION } from "./version.js";
