/** The steps of a flow, implemented with fetch and timers. */

import { requestIdOf } from "./failures.js";
import { belongs, type Failure, type Outcome, type Reply, type Send } from "./flow.js";
import type { Settings } from "./settings.js";

const LONGEST_TIMER = 2 ** 31 - 1; // ms; a longer timer would fire immediately
const TIMED_OUT = new Error("timed out");
const LONGEST_ANSWER = 2 ** 30; // bytes, decompressed
const LONGEST_REFUSAL = 2 ** 20; // bytes; the rest of an answer other than 200 is not read
// codes of Node's fetch; browsers have none
const NO_CONNECTION = /^(ECONNREFUSED|ENOTFOUND|EAI_AGAIN|EHOSTUNREACH|ENETUNREACH|UND_ERR_CONNECT_TIMEOUT|.*CERT.*)$/;
const MALFORMED = /^(HPE_.*|UND_ERR_HEADERS_OVERFLOW)$/; // the answer is no HTTP
const NODES_OWN_TIMEOUT = /^UND_ERR_(HEADERS|BODY)_TIMEOUT$/;

/** Carry out a step. `longest`: bytes of an answer. Throws only the reason of `signal`, if it was aborted, and what `settings.trace` throws. */
export async function send(step: Send, settings: Settings, signal: AbortSignal, longest = LONGEST_ANSWER): Promise<Outcome> {
  const trace = settings.trace(); // outside of `try`: its errors are no failures of the connection
  const silence = new Silence(step.timeout, step.left, signal);
  let begun = false;
  try {
    const response = await settings.fetch(settings.baseUrl + step.request.path, initOf(step, { ...settings.headers, ...trace }, silence.signal));
    begun = true;
    silence.heard();
    const most = response.status === 200 ? longest : LONGEST_REFUSAL;
    const body = await readUpTo(most, response, () => silence.heard());
    const headers = new Map([...response.headers].map(([name, value]) => [name.toLowerCase(), value]));
    return checked({ kind: "reply", status: response.status, headers, body }, step, longest);
  } catch (error) {
    signal.throwIfAborted();
    return silence.signal.aborted ? { kind: "timeout", detail: silence.reason } : failureOf(error, begun);
  } finally {
    silence.end();
  }
}

/** Wait, and throw the reason of `signal` as soon as it is aborted. */
export async function sleep(ms: number, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  await new Promise<void>((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, Math.min(ms, LONGEST_TIMER));
    signal.addEventListener("abort", stop, { once: true });
  });
}

/** Return the reply, or a failure if it is another request's or was longer than `longest`. */
function checked(reply: Reply, step: Send, longest: number): Outcome {
  const answered = requestIdOf(reply);
  if (!belongs(answered, step.requestId))
    return { kind: "wrong", detail: `the answer belongs to request ${answered}, not ${step.requestId}` };
  if (reply.status === 200 && reply.body.length > longest)
    return { kind: "wrong", detail: `the answer is longer than ${longest} bytes` };
  return reply;
}

/** A signal that is aborted after `left` ms, `timeout` ms without a call of `heard`, or together with another signal. */
class Silence {
  private readonly controller = new AbortController();
  private readonly stop = () => this.controller.abort(this.outer.reason);
  private readonly deadline: ReturnType<typeof setTimeout>;
  private timer: ReturnType<typeof setTimeout> | undefined;
  reason: string;

  constructor(
    private readonly timeout: number,
    left: number,
    private readonly outer: AbortSignal,
  ) {
    this.reason = `${timeout / 1000} s of silence`;
    this.deadline = setTimeout(() => {
      this.reason = "the deadline has passed";
      this.controller.abort(TIMED_OUT);
    }, Math.min(left, LONGEST_TIMER));
    outer.addEventListener("abort", this.stop, { once: true });
    if (outer.aborted) this.stop();
    else this.heard();
  }

  get signal(): AbortSignal {
    return this.controller.signal;
  }

  /** Restart the timer, because data arrived. */
  heard(): void {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.controller.abort(TIMED_OUT), Math.min(this.timeout, LONGEST_TIMER));
  }

  end(): void {
    clearTimeout(this.timer);
    clearTimeout(this.deadline);
    this.outer.removeEventListener("abort", this.stop);
  }
}

function initOf({ request, requestId }: Send, own: Readonly<Record<string, string>>, signal: AbortSignal): RequestInit {
  const headers: Record<string, string> = { ...own, Accept: request.accept, "X-SIE-Request-ID": requestId };
  if (request.contentType !== undefined) headers["Content-Type"] = request.contentType;
  // redirects are errors, because following them would send texts and key to another server
  return { method: request.method, headers, body: request.body ?? null, signal, redirect: "manual", cache: "no-store" };
}

/** Read the body up to the first part beyond `most` bytes; `heard` is called for every part. */
async function readUpTo(most: number, response: Response, heard: () => void): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  const reader = response.body?.getReader();
  let size = 0;
  for (let part = await reader?.read(); part && !part.done; part = await reader?.read()) {
    heard();
    parts.push(part.value);
    size += part.value.length;
    if (size > most) {
      await reader?.cancel();
      break;
    }
  }
  const body = new Uint8Array(size);
  let at = 0;
  for (const part of parts) {
    body.set(part, at);
    at += part.length;
  }
  return body;
}

/** Convert an error of fetch to a Failure. `begun`: the head of the answer had arrived. */
function failureOf(error: unknown, begun: boolean): Failure {
  const cause = error instanceof Error ? ((error.cause as (Error & { code?: string }) | undefined) ?? error) : undefined;
  const code = (cause as { code?: string } | undefined)?.code ?? "";
  const detail = cause?.message || code || String(error);
  if (NODES_OWN_TIMEOUT.test(code)) return { kind: "timeout", detail };
  if (begun || MALFORMED.test(code)) return { kind: "broken", detail };
  // a browser hides the reason from a page; the most frequent one is that it could not connect
  return { kind: NO_CONNECTION.test(code) || code === "" ? "connect" : "dropped", detail };
}
