/**
 * The errors that the client throws; the classes are those of the Python client.
 *
 *     SIEError
 *     ├── SIEConnectionError          no answer: refused, reset, cut short
 *     │   └── SIETimeoutError         no answer in time; the server may still be working on it
 *     ├── RequestError                the request is invalid (other 4xx, or rejected before sending)
 *     │   ├── AuthError               401, 403
 *     │   ├── InputTooLongError       413, or 400 INPUT_TOO_LONG
 *     │   └── ModelNotFoundError      404 MODEL_NOT_FOUND
 *     ├── RateLimitedError            429, until the deadline
 *     ├── ServerError                 any other 5xx
 *     │   ├── InferenceError          500 INFERENCE_ERROR
 *     │   ├── ModelLoadFailedError    502 MODEL_LOAD_FAILED
 *     │   ├── ModelLoadingError       503 MODEL_LOADING, until the deadline
 *     │   ├── QueueFullError          503 QUEUE_FULL, until the deadline
 *     │   └── ResourceExhaustedError  503 RESOURCE_EXHAUSTED, after its retries
 *     └── ProtocolError               a response that does not follow docs/http-api.md
 *
 * `errorFor` looks up the class by the status and the code of the answer. An aborted call rejects with the reason of its
 * AbortSignal instead.
 */

/** The fields of an error in addition to its message. */
export interface ErrorFacts {
  code?: string | undefined;
  status?: number | undefined;
  requestId?: string | undefined;
  retryable?: boolean | undefined;
  details?: Readonly<Record<string, unknown>> | undefined;
}

/** Base class of the client's errors. */
export class SIEError extends Error {
  override readonly name: string = "SIEError";
  /** The server's code; undefined if it sent none. */
  readonly code: string | undefined;
  /** The HTTP status; undefined without an answer. */
  readonly status: number | undefined;
  /** Identifies the request in the server's logs. */
  readonly requestId: string | undefined;
  /** True for a transient condition; the client has already retried within its limits. */
  readonly retryable: boolean;
  /** The server's error map. */
  readonly details: Readonly<Record<string, unknown>>;

  constructor(message: string, facts: ErrorFacts = {}) {
    super(message);
    this.code = facts.code;
    this.status = facts.status;
    this.requestId = facts.requestId;
    this.retryable = facts.retryable ?? false;
    this.details = facts.details ?? {};
  }

  override toString(): string {
    const origin = [this.status, this.code, this.requestId && `request ${this.requestId}`];
    const known = origin.filter((part) => part !== undefined);
    return `${this.name}: ${this.message}${known.length ? ` (${known.join(", ")})` : ""}`;
  }
}

/** The server could not be reached, or the connection broke. */
export class SIEConnectionError extends SIEError {
  override readonly name: string = "SIEConnectionError";
}

/** The server did not answer in time. Not retried, because it may still be working on the first request. */
export class SIETimeoutError extends SIEConnectionError {
  override readonly name = "SIETimeoutError";
}

/** The request is invalid; sending it again would fail in the same way. */
export class RequestError extends SIEError {
  override readonly name: string = "RequestError";
}

/** The API key is missing or not accepted. */
export class AuthError extends RequestError {
  override readonly name = "AuthError";
}

/** The input is longer than the model or the server accepts. */
export class InputTooLongError extends RequestError {
  override readonly name = "InputTooLongError";
}

/** The server does not know this model; the message suggests similar names. */
export class ModelNotFoundError extends RequestError {
  override readonly name = "ModelNotFoundError";
}

/** The caller is over its rate limit. */
export class RateLimitedError extends SIEError {
  override readonly name = "RateLimitedError";
}

/** The server failed. */
export class ServerError extends SIEError {
  override readonly name: string = "ServerError";
}

/** The model failed on this input. */
export class InferenceError extends ServerError {
  override readonly name = "InferenceError";
}

/** The model cannot be loaded. */
export class ModelLoadFailedError extends ServerError {
  override readonly name = "ModelLoadFailedError";

  /** The class of the failure on the server. */
  get errorClass(): string | undefined {
    return this.details["error_class"] as string | undefined;
  }

  /** True when the server will not try again. */
  get permanent(): boolean {
    return this.details["permanent"] !== false;
  }

  /** The number of times that the server tried to load the model. */
  get attempts(): number | undefined {
    return this.details["attempts"] as number | undefined;
  }
}

/** The model was still loading at the deadline. */
export class ModelLoadingError extends ServerError {
  override readonly name = "ModelLoadingError";
}

/** The server rejected requests because its queue was full, until the deadline. */
export class QueueFullError extends ServerError {
  override readonly name = "QueueFullError";
}

/** The device is out of memory for this request. */
export class ResourceExhaustedError extends ServerError {
  override readonly name = "ResourceExhaustedError";
}

/** The response does not follow docs/http-api.md. The message names the missing or malformed field. */
export class ProtocolError extends SIEError {
  override readonly name = "ProtocolError";
}

export type ErrorClass = new (message: string, facts?: ErrorFacts) => SIEError;

const BY_STATUS_AND_CODE: Readonly<Record<string, ErrorClass>> = {
  "400 INPUT_TOO_LONG": InputTooLongError,
  "404 MODEL_NOT_FOUND": ModelNotFoundError,
  "500 INFERENCE_ERROR": InferenceError,
  "502 MODEL_LOAD_FAILED": ModelLoadFailedError,
  "503 MODEL_LOADING": ModelLoadingError,
  "503 QUEUE_FULL": QueueFullError,
  "503 RESOURCE_EXHAUSTED": ResourceExhaustedError,
};
/** Codes of the server's 5xx answers; a 5xx with none of them and without the server's version comes from a proxy. */
export const CODES: ReadonlySet<string | undefined> = new Set([
  ...Object.keys(BY_STATUS_AND_CODE).filter((key) => key >= "500").map((key) => key.slice(4)),
  "INTERNAL_ERROR",
  "LORA_LOADING",
]);
const BY_STATUS: Readonly<Record<number, ErrorClass>> = {
  401: AuthError,
  403: AuthError,
  413: InputTooLongError,
  429: RateLimitedError,
};
const BY_HUNDRED: Readonly<Record<number, ErrorClass>> = { 4: RequestError, 5: ServerError };
const TRANSIENT: ReadonlySet<ErrorClass> = new Set<ErrorClass>([
  RateLimitedError,
  ModelLoadingError,
  QueueFullError,
  ResourceExhaustedError,
]);

/** Return the error for an answer other than 200. `passing`: it is transient, with any status. */
export function errorFor(status: number, message: string, facts: ErrorFacts, passing = false): SIEError {
  const kind =
    BY_STATUS_AND_CODE[`${status} ${facts.code}`] ??
    BY_STATUS[status] ??
    BY_HUNDRED[Math.floor(status / 100)] ??
    ProtocolError;
  const loadsAgain = kind === ModelLoadFailedError && facts.details?.["permanent"] === false;
  return new kind(message, { ...facts, status, retryable: passing || loadsAgain || TRANSIENT.has(kind) });
}
