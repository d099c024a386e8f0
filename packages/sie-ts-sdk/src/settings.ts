/** The client's settings: arguments override the environment (Node), which overrides the defaults. */

import { checkOptions, type Warn } from "./calls.js";
import { VERSION } from "./version.js";

const DEFAULT_BASE_URL = "http://localhost:8080";
const DEFAULT_TIMEOUT = 150_000; // ms of silence in one attempt
const DEFAULT_DEADLINE = 900_000; // ms for a call with all its retries: large models take minutes to load

/** Options of `new SIEClient(baseUrl, options)`. */
export interface ClientOptions {
  /** Sent as `Authorization: Bearer …`; default: the variable SIE_API_KEY. */
  apiKey?: string;
  /** Longest silence of the server in one attempt, in ms; default: SIE_TIMEOUT (in seconds), else 150 000. */
  timeout?: number;
  /** Limit for a call with all its retries, in ms; default: 900 000. */
  deadline?: number;
  /** For routers in front of the server: X-SIE-MACHINE-PROFILE. */
  machineProfile?: string;
  /** For routers in front of the server: X-SIE-Pool. */
  pool?: string;
  /** Returns the headers of the caller's trace (W3C Trace Context) for each request, as OpenTelemetry's `propagation.inject` writes them. */
  trace?: () => TraceContext;
  /** Replaces the global `fetch`. */
  fetch?: typeof globalThis.fetch;
  /** Receives warnings that a result has no field for; default: console.warn. */
  warn?: Warn;
}

/** The position of a request in a trace; absent values are not sent. */
export interface TraceContext {
  traceparent?: string;
  tracestate?: string;
}

/** The settings of a client; times in ms. */
export interface Settings {
  baseUrl: string;
  timeout: number;
  deadline: number;
  headers: Readonly<Record<string, string>>;
  /** Returns further headers for one request. Throws what the caller's function throws. */
  trace: () => Readonly<Record<string, string>>;
  fetch: typeof globalThis.fetch;
  warn: Warn;
}

const OPTIONS = ["apiKey", "timeout", "deadline", "machineProfile", "pool", "trace", "fetch", "warn"];

/** Combine arguments and environment. Throws TypeError for an invalid value, RequestError for an unknown option. */
export function resolve(baseUrl: string | undefined, options: ClientOptions): Settings {
  checkOptions(options, OPTIONS);
  const timeout = milliseconds("timeout", options.timeout) ?? timeoutFromEnvironment() ?? DEFAULT_TIMEOUT;
  const apiKey = options.apiKey || environment("SIE_API_KEY");
  return {
    baseUrl: checkedUrl(baseUrl || environment("SIE_BASE_URL") || DEFAULT_BASE_URL),
    timeout,
    // a timeout above the default deadline extends the deadline
    deadline: milliseconds("deadline", options.deadline) ?? Math.max(DEFAULT_DEADLINE, timeout),
    headers: {
      "X-SIE-SDK-Version": VERSION,
      ...header("Authorization", apiKey && `Bearer ${apiKey}`),
      ...header("X-SIE-MACHINE-PROFILE", options.machineProfile),
      ...header("X-SIE-Pool", options.pool),
    },
    trace: () => {
      const { traceparent, tracestate } = options.trace?.() ?? {};
      return { ...header("traceparent", traceparent), ...header("tracestate", tracestate) };
    },
    // browsers' fetch must be called on the global object
    fetch: options.fetch ?? ((input, init) => globalThis.fetch(input, init)),
    warn: options.warn ?? ((message) => console.warn(`sie-sdk: ${message}`)),
  };
}

/** Return `value`, or undefined if absent. Throws TypeError unless it is a positive, finite number. */
export function milliseconds(name: string, value: number | null | undefined): number | undefined {
  if (value === undefined || value === null) return undefined;
  if (typeof value !== "number" || !Number.isFinite(value) || value <= 0)
    throw new TypeError(`${name} is ${String(value)}, not a positive number of milliseconds`);
  return value;
}

/** Return whether two versions differ in the major or by more than one minor; false if one is unreadable. */
export function skewed(ours: string, theirs: string): boolean {
  const [a, b] = [ours, theirs].map((version) => /^v?(\d+)\.(\d+)/.exec(version));
  if (!a || !b) return false;
  return a[1] !== b[1] || Math.abs(Number(a[2]) - Number(b[2])) > 1;
}

function header(name: string, value: string | undefined): Record<string, string> {
  if (value === undefined || value === "") return {};
  // the message does not contain the value, which may be a key
  if (!/^[\x20-\x7e]+$/.test(value))
    throw new TypeError(`the value for ${name} has characters that an HTTP header cannot hold`);
  return { [name]: value };
}

function environment(name: string): string | undefined {
  const { process } = globalThis as { process?: { env?: Record<string, string | undefined> } };
  return process?.env?.[name]?.trim() || undefined;
}

function timeoutFromEnvironment(): number | undefined {
  const text = environment("SIE_TIMEOUT");
  if (text === undefined) return undefined;
  if (!(Number(text) > 0 && Number(text) < Infinity))
    throw new TypeError(`SIE_TIMEOUT is ${JSON.stringify(text)}, not a positive number of seconds`);
  return Number(text) * 1000;
}

function checkedUrl(url: string): string {
  let parts: URL;
  try {
    parts = new URL(url);
  } catch {
    throw new TypeError(`baseUrl is ${JSON.stringify(url)}; it must start with http:// or https:// and contain a host`);
  }
  if (!["http:", "https:"].includes(parts.protocol))
    throw new TypeError(`baseUrl is ${JSON.stringify(url)}; it must start with http:// or https://`);
  // the message does not contain the password
  if (parts.username || parts.password)
    throw new TypeError("baseUrl contains a name or a password, which fetch refuses; pass a key as apiKey");
  if (parts.search || parts.hash) throw new TypeError(`baseUrl is ${JSON.stringify(url)}; it must not contain a query or fragment`);
  return url.replace(/\/+$/, "");
}
