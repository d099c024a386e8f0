/**
 * The protocol of a request without I/O.
 *
 * `exchange` is a generator. It yields `send` (send this request; resume with a reply or a failure) and `sleep` (wait),
 * and returns the 200 reply or throws a SIEError. It implements retries, backoff and deadline; the client only carries
 * out the steps. The clock and the random source are arguments, so tests never sleep. All times are in milliseconds. The
 * rules are those of the Python client (sie_sdk/flow.py).
 */

import { ModelLoadFailedError, ResourceExhaustedError, type SIEError } from "./errors.js";
import { errorOf, fromServer } from "./failures.js";

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
 * the answer. timeout: no data arrived in time after the request was sent. wrong: the answer belongs to another request,
 * or is longer than any answer may be.
 */
export interface Failure {
  kind: "connect" | "dropped" | "broken" | "timeout" | "wrong";
  detail: string;
}

/** Send the request as `requestId`, with at most `timeout` ms of silence and `left` ms in all. */
export interface Send {
  kind: "send";
  request: Request;
  timeout: number;
  left: number;
  requestId: string;
}

/** Send, or wait for `ms`. */
export type Step = Send | { kind: "sleep"; ms: number };
export type Outcome = Reply | Failure | undefined;

/** The sources of time and randomness. `monotonic` and `wall` in ms; `random` in [0, 1). */
export interface Clock {
  monotonic(): number;
  wall(): number;
  random(): number;
  requestId(): string;
}

/**
 * Limits in ms: `timeout` for one attempt, `deadline` for all. `url` is used in messages.
 *
 * answered: this client has had an answer of this server, so it is worth waiting while it restarts. giveUp: ms after
 * which no attempt starts, because the caller has no use for a later answer.
 */
export interface Patience {
  timeout: number;
  deadline: number;
  url: string;
  answered: boolean;
  giveUp: number;
}

const RESOURCE_RETRIES = 3;
const BROKEN_RETRIES = 2; // an answer that breaks off each time, for instance at a proxy's limit, is reported soon
const FIRST_RETRIES = 2; // of a client that never had an answer, so that a wrong URL is reported soon
const OWN_ID = /^sdk-[0-9a-f]{32}$/;
const BACKOFF_FIRST = 250;
const BACKOFF_MOST = 8000;
const UNREACHABLE_MOST = 2000; // a refused connection costs little, and a server may be back only for a short time

/** Send `request` until it is answered or a limit is reached. Returns the 200 reply; throws SIEError. */
export function* exchange(request: Request, patience: Patience, clock: Clock): Generator<Step, Reply, Outcome> {
  const started = clock.monotonic();
  const waited = () => clock.monotonic() - started;
  const until = Math.min(patience.deadline, patience.giveUp);
  let answered = patience.answered;
  const failed = new Map<string, number>();
  for (let sent = 1; ; sent++) {
    const left = patience.deadline - waited();
    const timeout = Math.min(patience.timeout, left);
    const outcome = yield { kind: "send", request, timeout, left, requestId: clock.requestId() };
    if (outcome?.kind === "reply") {
      if (outcome.status === 200) return outcome;
      if (fromServer(outcome)) {
        answered = true;
        failed.delete("unreachable"); // a later restart is counted anew
      }
    }
    const error = errorOf(outcome, request, patience.url);
    if (!error.retryable || error instanceof ModelLoadFailedError) throw error; // the server tries that one again itself
    const [condition, limit] = limitOf(error, outcome, answered);
    const most = condition === "unreachable" ? UNREACHABLE_MOST : BACKOFF_MOST;
    const wait = retryWait(outcome, [...failed.values()].reduce((sum, count) => sum + count, 0), most, clock);
    const failures = (failed.get(condition) ?? 0) + 1;
    failed.set(condition, failures);
    if (failures > limit || waited() + wait >= until) throw gaveUp(error, sent, waited());
    yield { kind: "sleep", ms: wait };
    if (waited() >= until) throw gaveUp(error, sent, waited()); // the sleep took longer than requested
  }
}

/** Return whether an answer may be one to `requestId`: its id is this one, or one that a server made. */
export function belongs(answered: string | undefined, requestId: string): boolean {
  return answered === undefined || !OWN_ID.test(answered) || answered === requestId;
}

/** Return the transient condition and its number of retries. */
function limitOf(error: SIEError, outcome: Outcome, answered: boolean): [string, number] {
  if (error instanceof ResourceExhaustedError) return ["exhausted", RESOURCE_RETRIES];
  if (outcome?.kind === "broken") return ["broken", BROKEN_RETRIES];
  if (outcome?.kind !== "reply" || !fromServer(outcome)) return ["unreachable", answered ? Infinity : FIRST_RETRIES];
  return ["busy", Infinity];
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
 * `most` is the longest backoff. A Retry-After of zero is ignored, because it would lead to a busy loop against an overloaded server.
 */
function retryWait(outcome: Outcome, failures: number, most: number, clock: Clock): number {
  const requested = outcome?.kind === "reply" ? retryAfter(outcome.headers.get("retry-after"), clock) : undefined;
  if (requested) return requested;
  const backoff = Math.min(most, BACKOFF_FIRST * 2 ** Math.min(failures, 16));
  return backoff * (0.5 + 0.5 * clock.random()); // spreads out clients that failed together
}

/** Convert a Retry-After header, seconds or an HTTP date, to ms from now; undefined if it is invalid. */
export function retryAfter(value: string | undefined, clock: Clock): number | undefined {
  const text = value?.trim() ?? "";
  if (/^\d{1,15}(\.\d{1,9})?$/.test(text)) return Number(text) * 1000;
  if (!/^[A-Za-z]{3,9}, \S/.test(text)) return undefined; // Date.parse reads "-3" as a date
  const moment = Date.parse(text);
  return Number.isNaN(moment) ? undefined : Math.max(0, moment - clock.wall());
}
