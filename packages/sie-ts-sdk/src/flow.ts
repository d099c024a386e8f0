/**
 * The life of a request, written once and without I/O.
 *
 * `exchange` is a generator. It yields `send` (put this on the wire; answer with a reply or a failure) and `sleep`
 * (wait), and returns the 200 reply or throws a SIEError. Retries, backoff and deadline live here; the client only
 * carries out the steps. Clock and chance are arguments, so tests drive it by hand and never sleep. All times are in
 * milliseconds. The rules are those of the Python client (sie_sdk/flow.py).
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

/** What to ask for. `path` is relative to the base URL and percent-encoded. */
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
 * connect: no connection came about. dropped: it ended before any of the answer came. broken: it ended in the middle
 * of the answer. timeout: silence for too long after the request went out.
 */
export interface Failure {
  kind: "connect" | "dropped" | "broken" | "timeout";
  detail: string;
}

/** Put the request on the wire, with at most `timeout` ms of silence; or wait for `ms`. */
export type Step = { kind: "send"; request: Request; timeout: number } | { kind: "sleep"; ms: number };
export type Outcome = Reply | Failure | undefined;

/** Time and chance, injected. `monotonic` and `wall` in ms; `random` in [0, 1). */
export interface Clock {
  monotonic(): number;
  wall(): number;
  random(): number;
}

/** How long to go on: `timeout` for one attempt, `deadline` for all, in ms; `url` is for messages. */
export interface Patience {
  timeout: number;
  deadline: number;
  url: string;
}

/** How often each passing condition is retried. What is not here is thrown at once. */
const RETRIES: ReadonlyMap<unknown, number> = new Map<unknown, number>([
  [ModelLoadingError, Infinity],
  [QueueFullError, Infinity],
  [RateLimitedError, Infinity],
  [ResourceExhaustedError, 3],
  [SIEConnectionError, 2], // three tries: a wrong URL should be told soon
]);
const BACKOFF_FIRST = 250;
const BACKOFF_MOST = 8000;

/** Send `request` until it is answered or patience ends. Returns the 200 reply; throws SIEError. */
export function* exchange(request: Request, patience: Patience, clock: Clock): Generator<Step, Reply, Outcome> {
  const started = clock.monotonic();
  const waited = () => clock.monotonic() - started;
  const failed = new Map<unknown, number>();
  for (let sent = 1; ; sent++) {
    const left = patience.deadline - waited();
    const outcome = yield { kind: "send", request, timeout: Math.min(patience.timeout, left) };
    if (outcome?.kind === "reply") {
      if (outcome.status === 200) return outcome;
      failed.delete(SIEConnectionError); // the server is there: restarts later on count anew
    }
    const error = errorOf(outcome, request, patience.url);
    const limit = error.retryable ? (RETRIES.get(error.constructor) ?? 0) : 0;
    if (limit === 0) throw error;
    const wait = retryWait(outcome, [...failed.values()].reduce((sum, count) => sum + count, 0), clock);
    const failures = (failed.get(error.constructor) ?? 0) + 1;
    failed.set(error.constructor, failures);
    if (failures > limit || waited() + wait >= patience.deadline) throw gaveUp(error, sent, waited());
    yield { kind: "sleep", ms: wait };
    if (waited() >= patience.deadline) throw gaveUp(error, sent, waited()); // the sleep took longer than asked
  }
}

/** The same error, saying how long was tried. */
function gaveUp(error: SIEError, sent: number, waited: number): SIEError {
  const said = error.message;
  error.message += ` [gave up after ${sent} ${sent === 1 ? "try" : "tries"} in ${(waited / 1000).toFixed(1)} s]`;
  error.stack = error.stack?.replace(said, () => error.message); // it was written when the error was made
  return error;
}

/**
 * Milliseconds until the next try: what the server asked for, verbatim; else jittered exponential backoff.
 *
 * A Retry-After of zero leaves the choice to us: taken literally it would make a hot loop against a busy server.
 */
function retryWait(outcome: Outcome, failures: number, clock: Clock): number {
  const asked = outcome?.kind === "reply" ? retryAfter(outcome.headers.get("retry-after"), clock) : undefined;
  if (asked) return asked;
  const most = Math.min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** Math.min(failures, 16));
  return most * (0.5 + 0.5 * clock.random()); // never near zero, and clients that failed together part
}

/** A Retry-After header, in seconds or as an HTTP date → ms from now; undefined if unreadable. */
export function retryAfter(value: string | undefined, clock: Clock): number | undefined {
  const text = value?.trim() ?? "";
  if (/^\d+(\.\d+)?$/.test(text)) return Number(text) * 1000;
  if (!/^[A-Za-z]{3,9}, \S/.test(text)) return undefined; // Date.parse takes "-3" for a date
  const moment = Date.parse(text);
  return Number.isNaN(moment) ? undefined : Math.max(0, moment - clock.wall());
}
