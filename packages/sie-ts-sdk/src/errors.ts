/**
 * Everything the client throws, in one tree; the classes are those of the Python client.
 *
 *     SIEError
 *     ├── SIEConnectionError          no answer: refused, reset, cut short
 *     │   └── SIETimeoutError         no answer in time; the server may still be at work
 *     ├── RequestError                the request cannot work as it is (other 4xx, or refused before sending)
 *     │   ├── AuthError               401, 403
 *     │   ├── InputTooLongError       413, or 400 INPUT_TOO_LONG
 *     │   └── ModelNotFoundError      404 MODEL_NOT_FOUND
 *     ├── RateLimitedError            429, still so at the deadline
 *     ├── ServerError                 any other 5xx
 *     │   ├── InferenceError          500 INFERENCE_ERROR
 *     │   ├── ModelLoadFailedError    502 MODEL_LOAD_FAILED
 *     │   ├── ModelLoadingError       503 MODEL_LOADING, still so at the deadline
 *     │   ├── QueueFullError          503 QUEUE_FULL, still so at the deadline
 *     │   └── ResourceExhaustedError  503 RESOURCE_EXHAUSTED, after its retries
 *     └── ProtocolError               a response that does not follow docs/http-api.md
 *
 * `errorFor` chooses the class by table, from the status and the code the server sent. An aborted call is none of
 * these: it rejects with the reason of its AbortSignal.
 */

/** What is known about an error beside its message. */
export interface ErrorFacts {
  code?: string | undefined;
  status?: number | undefined;
  requestId?: string | undefined;
  retryable?: boolean | undefined;
  details?: Readonly<Record<string, unknown>> | undefined;
}

/** Root of the tree. */
export class SIEError extends Error {
  override readonly name: string = "SIEError";
  /** The server's code; undefined when there is none. */
  readonly code: string | undefined;
  /** The HTTP status; undefined when no answer came. */
  readonly status: number | undefined;
  /** Quote it when asking about a request. */
  readonly requestId: string | undefined;
  /** True when the condition passes by itself; the client has then retried it as far as its limits allow. */
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

/** The server did not answer in time. Never retried: it may still be working on the first request. */
export class SIETimeoutError extends SIEConnectionError {
  override readonly name = "SIETimeoutError";
}

/** The request is wrong; sending it again will not help. */
export class RequestError extends SIEError {
  override readonly name: string = "RequestError";
}

/** The API key is missing or not accepted. */
export class AuthError extends RequestError {
  override readonly name = "AuthError";
}

/** The input is longer than the model or the server takes. */
export class InputTooLongError extends RequestError {
  override readonly name = "InputTooLongError";
}

/** The server does not know this model; its message suggests names that are close. */
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

  /** What kind of failure it was on the server. */
  get errorClass(): string | undefined {
    return this.details["error_class"] as string | undefined;
  }

  /** True when the server will not try again. */
  get permanent(): boolean {
    return this.details["permanent"] !== false;
  }

  /** How many times the server tried to load the model. */
  get attempts(): number | undefined {
    return this.details["attempts"] as number | undefined;
  }
}

/** The model was still loading when the deadline came. */
export class ModelLoadingError extends ServerError {
  override readonly name = "ModelLoadingError";
}

/** The server was shedding load until the deadline. */
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
const BY_STATUS: Readonly<Record<number, ErrorClass>> = {
  401: AuthError,
  403: AuthError,
  413: InputTooLongError,
  429: RateLimitedError,
};
const BY_HUNDRED: Readonly<Record<number, ErrorClass>> = { 4: RequestError, 5: ServerError };
const PASSES_BY_ITSELF: ReadonlySet<ErrorClass> = new Set<ErrorClass>([
  RateLimitedError,
  ModelLoadingError,
  QueueFullError,
  ResourceExhaustedError,
]);

/** The error for an answer that is not a 200. */
export function errorFor(status: number, message: string, facts: ErrorFacts): SIEError {
  const kind =
    BY_STATUS_AND_CODE[`${status} ${facts.code}`] ??
    BY_STATUS[status] ??
    BY_HUNDRED[Math.floor(status / 100)] ??
    ProtocolError;
  const loadsAgain = kind === ModelLoadFailedError && facts.details?.["permanent"] === false;
  return new kind(message, { ...facts, status, retryable: loadsAgain || PASSES_BY_ITSELF.has(kind) });
}
