/**
 * The protocol of a request without I/O.
 *
 * `exchange` is a generator. It yields `send` (send this request; resume with a reply or a failure) and `sleep` (wait),
 * and returns the 200 reply or throws a SIEError. It implements retries, backoff and deadline; the client only carries
 * out the steps. The clock and the random source are arguments, so tests never sleep. All times are in milliseconds. The
 * rules are those of the Python client (sie_sdk/flow.py).
 */

import {
  ModelLoadingError,
  QueueFullError,
  RateLimitedError,
  ResourceExhaustedError,
  SIEConnectionError,
  type SIEError,
} from "./errors.js";
import { errorOf } from "./failures.js";

/** A request. `path` is relative to the base URL and percent-encoded. */
export interface Request {
  method: "GET" | "POST";
  path: string;
  accept: string;
  body?: Uint8Array<ArrayBuffer>;
  contentType?: string;
}

/** A complete answer; header names in lower case. */
export interface Reply {
  kind: "reply";
  status: number;
  headers: ReadonlyMap<string, string>;
  body: Uint8Array;
}

/**
 * No complete answer.
 *
 * connect: no connection was established. dropped: it ended before the answer began. broken: it ended in the middle of
 * the answer. timeout: no data arrived in time after the request was sent.
 */
export interface Failure {
  kind: "connect" | "dropped" | "broken" | "timeout";
  detail: string;
}

/** Send the request, with at most `timeout` ms of silence, or wait for `ms`. */
export type Step = { kind: "send"; request: Request; timeout: number } | { kind: "sleep"; ms: number };
export type Outcome = Reply | Failure | undefined;

/** The sources of time and randomness. `monotonic` and `wall` in ms; `random` in [0, 1). */
export interface Clock {
  monotonic(): number;
  wall(): number;
  random(): number;
}

/** Limits in ms: `timeout` for one attempt, `deadline` for all. `url` is used in messages. */
export interface Patience {
  timeout: number;
  deadline: number;
  url: string;
}

/** The number of retries for each transient condition. All other errors are thrown immediately. */
const RETRIES: ReadonlyMap<unknown, number> = new Map<unknown, number>([
  [ModelLoadingError, Infinity],
  [QueueFullError, Infinity],
  [RateLimitedError, Infinity],
  [ResourceExhaustedError, 3],
  [SIEConnectionError, 2], // three attempts, so that a wrong URL is reported soon
]);
const BACKOFF_FIRST = 250;
const BACKOFF_MOST = 8000;

/** Send `request` until it is answered or a limit is reached. Returns the 200 reply; throws SIEError. */
export function* exchange(request: Request, patience: Patience, clock: Clock): Generator<Step, Reply, Outcome> {
  const started = clock.monotonic();
  const waited = () => clock.monotonic() - started;
  const failed = new Map<unknown, number>();
  for (let sent = 1; ; sent++) {
    const left = patience.deadline - waited();
    const outcome = yield { kind: "send", request, timeout: Math.min(patience.timeout, left) };
    if (outcome?.kind === "reply") {
      if (outcome.status === 200) return outcome;
      failed.delete(SIEConnectionError); // the server is reachable: a later restart is counted anew
    }
    const error = errorOf(outcome, request, patience.url);
    const limit = error.retryable ? (RETRIES.get(error.constructor) ?? 0) : 0;
    if (limit === 0) throw error;
    const wait = retryWait(outcome, [...failed.values()].reduce((sum, count) => sum + count, 0), clock);
    const failures = (failed.get(error.constructor) ?? 0) + 1;
    failed.set(error.constructor, failures);
    if (failures > limit || waited() + wait >= patience.deadline) throw gaveUp(error, sent, waited());
    yield { kind: "sleep", ms: wait };
    if (waited() >= patience.deadline) throw gaveUp(error, sent, waited()); // the sleep took longer than requested
  }
}

/** Add the number of attempts and the time to the error's message. */
function gaveUp(error: SIEError, sent: number, waited: number): SIEError {
  const said = error.message;
  error.message += ` [gave up after ${sent} ${sent === 1 ? "try" : "tries"} in ${(waited / 1000).toFixed(1)} s]`;
  error.stack = error.stack?.replace(said, () => error.message); // it contains the message at the time of construction
  return error;
}

/**
 * Return the milliseconds until the next attempt: the server's Retry-After, else exponential backoff with jitter.
 *
 * A Retry-After of zero is ignored, because it would lead to a busy loop against an overloaded server.
 */
function retryWait(outcome: Outcome, failures: number, clock: Clock): number {
  const requested = outcome?.kind === "reply" ? retryAfter(outcome.headers.get("retry-after"), clock) : undefined;
  if (requested) return requested;
  const most = Math.min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** Math.min(failures, 16));
  return most * (0.5 + 0.5 * clock.random()); // spreads out clients that failed together
}

/** Convert a Retry-After header, seconds or an HTTP date, to ms from now; undefined if it is invalid. */
export function retryAfter(value: string | undefined, clock: Clock): number | undefined {
  const text = value?.trim() ?? "";
  if (/^\d+(\.\d+)?$/.test(text)) return Number(text) * 1000;
  if (!/^[A-Za-z]{3,9}, \S/.test(text)) return undefined; // Date.parse reads "-3" as a date
  const moment = Date.parse(text);
  return Number.isNaN(moment) ? undefined : Math.max(0, moment - clock.wall());
}
