/** The steps of a flow, implemented with fetch and timers. */

import type { Failure, Outcome, Request } from "./flow.js";
import type { Settings } from "./settings.js";

const LONGEST_TIMER = 2 ** 31 - 1; // ms; a longer timer would fire immediately
const TIMED_OUT = new Error("timed out");
// codes of Node's fetch; browsers have none
const NO_CONNECTION = /^(ECONNREFUSED|ENOTFOUND|EAI_AGAIN|EHOSTUNREACH|ENETUNREACH|UND_ERR_CONNECT_TIMEOUT|.*CERT.*)$/;
const NODES_OWN_TIMEOUT = /^UND_ERR_(HEADERS|BODY)_TIMEOUT$/;

/** Send a request once. `timeout`: ms of silence. Throws only the reason of `signal`, if it was aborted. */
export async function send(request: Request, timeout: number, settings: Settings, signal: AbortSignal): Promise<Outcome> {
  const silence = new Silence(timeout, signal);
  let begun = false;
  try {
    const response = await settings.fetch(settings.baseUrl + request.path, initOf(request, settings, silence.signal));
    begun = true;
    silence.heard();
    const body = await readAll(response, () => silence.heard());
    const headers = new Map([...response.headers].map(([name, value]) => [name.toLowerCase(), value]));
    return { kind: "reply", status: response.status, headers, body };
  } catch (error) {
    signal.throwIfAborted();
    return silence.signal.aborted ? { kind: "timeout", detail: `${timeout / 1000} s of silence` } : failureOf(error, begun);
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

/** A signal that is aborted after `timeout` ms without a call of `heard`, or together with another signal. */
class Silence {
  private readonly controller = new AbortController();
  private readonly stop = () => this.controller.abort(this.outer.reason);
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly timeout: number,
    private readonly outer: AbortSignal,
  ) {
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
    this.outer.removeEventListener("abort", this.stop);
  }
}

function initOf(request: Request, settings: Settings, signal: AbortSignal): RequestInit {
  const headers: Record<string, string> = { ...settings.headers, Accept: request.accept };
  if (request.contentType !== undefined) headers["Content-Type"] = request.contentType;
  // redirects are errors, because following them would send texts and key to another server
  return { method: request.method, headers, body: request.body ?? null, signal, redirect: "manual", cache: "no-store" };
}

/** Read the body; `heard` is called for every part. */
async function readAll(response: Response, heard: () => void): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  const reader = response.body?.getReader();
  for (let part = await reader?.read(); part && !part.done; part = await reader?.read()) {
    heard();
    parts.push(part.value);
  }
  const body = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
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
  if (begun) return { kind: "broken", detail };
  // a browser hides the reason from a page; the most frequent one is that it could not connect
  return { kind: NO_CONNECTION.test(code) || code === "" ? "connect" : "dropped", detail };
}
