/** Conversion of failed attempts, error answers and connection failures, to SIEErrors. */

import { CODES, errorFor, ProtocolError, SIEConnectionError, type SIEError, SIETimeoutError } from "./errors.js";
import type { Outcome, Reply, Request } from "./flow.js";

/** Return the error for a failed attempt. */
export function errorOf(outcome: Outcome, request: Request, url: string): SIEError {
  if (outcome === undefined) throw new TypeError("a send was answered with nothing");
  if (outcome.kind === "reply") return errorOfReply(outcome, request, url);
  const where = `${request.method} ${url}${request.path}`;
  switch (outcome.kind) {
    case "timeout":
      return new SIETimeoutError(`${where}: no answer in time (${outcome.detail})`);
    case "connect":
      return new SIEConnectionError(
        `cannot connect to ${url}: ${outcome.detail}; check that the server is running and that baseUrl is right${corsHint()}`,
        { retryable: true },
      );
    case "dropped":
      return new SIEConnectionError(`${where}: the connection was dropped (${outcome.detail})`, { retryable: true });
    case "broken":
      return new SIEConnectionError(`${where}: the answer broke off (${outcome.detail})`, { retryable: true });
    case "wrong":
      return new ProtocolError(`${where}: ${outcome.detail}`);
  }
}

/** Return whether a SIE server wrote it. A 5xx without version and known code comes from a proxy in front of one. */
export function fromServer(reply: Reply): boolean {
  if (reply.status < 500 || reply.status > 599 || reply.headers.has("x-sie-server-version")) return true;
  return CODES.has(codeOf(errorMap(reply.body), reply));
}

/** X-SIE-Request-ID, unless it holds more than visible ASCII. */
export function requestIdOf(reply: Reply): string | undefined {
  const value = reply.headers.get("x-sie-request-id") ?? "";
  return /^[!-~]{1,256}$/.test(value) ? value : undefined;
}

/** A browser hides the reason from a page, so a refused connection and a forbidden origin look the same. */
function corsHint(): string {
  return "document" in globalThis ? ", and that its cors_origins contain this page's origin" : "";
}

function errorOfReply(reply: Reply, request: Request, url: string): SIEError {
  const body = errorMap(reply.body);
  const message = body["message"] ? String(body["message"]) : plainMessage(reply, request, url);
  const facts = { code: codeOf(body, reply), requestId: requestIdOf(reply), details: body };
  return errorFor(reply.status, message, facts, !fromServer(reply)); // a proxy answers while the server is away
}

function codeOf(body: Record<string, unknown>, reply: Reply): string | undefined {
  return typeof body["code"] === "string" ? body["code"] : reply.headers.get("x-sie-error-code");
}

/** Return the server's error map: `error`, else `detail`, else the top level; empty if the body has none. */
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

/** Return a message for an answer without an error map, for instance from a proxy. */
function plainMessage(reply: Reply, request: Request, url: string): string {
  const text = new TextDecoder().decode(reply.body.subarray(0, 200)).split(/\s+/).filter(Boolean).join(" ");
  const location = reply.headers.get("location");
  const where = `${request.method} ${url}${request.path}`;
  const status = reply.status === 0 ? "a redirect" : `status ${reply.status}`; // browsers hide a redirect's status
  return `${where} was answered with ${status}${location ? ` to ${location}` : ""}: ${text || "no body"}`;
}

/** Return whether a decoded value is a map with text keys. */
export function isMap(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !ArrayBuffer.isView(value);
}
