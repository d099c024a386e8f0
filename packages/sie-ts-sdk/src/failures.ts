/** What an attempt that did not succeed means: the server's error body, or the way the connection failed → SIEError. */

import { errorFor, SIEConnectionError, type SIEError, SIETimeoutError } from "./errors.js";
import type { Outcome, Reply, Request } from "./flow.js";

/** The error behind an outcome that is not a 200. */
export function errorOf(outcome: Outcome, request: Request, url: string): SIEError {
  if (outcome === undefined) throw new TypeError("a send was answered with nothing");
  if (outcome.kind === "reply") return errorOfReply(outcome, request, url);
  const where = `${request.method} ${url}${request.path}`;
  switch (outcome.kind) {
    case "timeout":
      return new SIETimeoutError(`${where}: no answer in time (${outcome.detail})`);
    case "connect":
      return new SIEConnectionError(
        `cannot connect to ${url}: ${outcome.detail}; is the server running there, and is baseUrl right?${corsHint()}`,
        { retryable: true },
      );
    case "dropped":
      return new SIEConnectionError(`${where}: the connection was dropped (${outcome.detail})`, { retryable: true });
    case "broken":
      return new SIEConnectionError(`${where}: the answer broke off (${outcome.detail})`);
  }
}

/** X-SIE-Request-ID, unless it holds more than visible ASCII. */
export function requestIdOf(reply: Reply): string | undefined {
  const value = reply.headers.get("x-sie-request-id") ?? "";
  return /^[!-~]{1,256}$/.test(value) ? value : undefined;
}

/** A browser does not tell a page why: a refused connection and a server that does not allow the page look alike. */
function corsHint(): string {
  return "document" in globalThis ? " Does its cors_origins name this page's origin?" : "";
}

function errorOfReply(reply: Reply, request: Request, url: string): SIEError {
  const body = errorMap(reply.body);
  const code = typeof body["code"] === "string" ? body["code"] : reply.headers.get("x-sie-error-code");
  const message = body["message"] ? String(body["message"]) : plainMessage(reply, request, url);
  return errorFor(reply.status, message, { code, requestId: requestIdOf(reply), details: body });
}

/** The server's error map: `error`, else `detail`, else the top level; empty for anything else. */
function errorMap(body: Uint8Array): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder().decode(body));
  } catch {
    return {};
  }
  if (!isMap(value)) return {};
  for (const name of ["error", "detail"]) {
    const inner = value[name];
    if (isMap(inner)) return { code: value["code"], ...inner };
  }
  const words = value["message"] || value["detail"] || value["error"];
  return words ? { ...value, message: typeof words === "string" ? words : JSON.stringify(words) } : value;
}

/** For answers without a message of ours: proxies, other programs on the port. */
function plainMessage(reply: Reply, request: Request, url: string): string {
  const text = new TextDecoder().decode(reply.body.subarray(0, 200)).split(/\s+/).filter(Boolean).join(" ");
  const location = reply.headers.get("location");
  const where = `${request.method} ${url}${request.path}`;
  const status = reply.status === 0 ? "a redirect" : `status ${reply.status}`; // browsers hide a redirect's status
  return `${where} was answered with ${status}${location ? ` to ${location}` : ""}: ${text || "no body"}`;
}

/** Whether a decoded value is a map with text keys. */
export function isMap(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !ArrayBuffer.isView(value);
}
