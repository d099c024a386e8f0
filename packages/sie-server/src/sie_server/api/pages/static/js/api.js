/**
 * Requests to the server that the page comes from. Each call is one HTTP request, and nothing is repeated here.
 *
 * @typedef {import("wire").ModelInfo} ModelInfo
 * @typedef {import("wire").ScoreRequest} ScoreRequest
 * @typedef {import("wire").ScoreResponse} ScoreResponse
 * @typedef {import("wire").InspectResponse} InspectResponse
 * @typedef {{ queue: number, tokenize: number, inference: number, server: number, browser: number }} Times milliseconds
 */

const KEY = "sie-playground-key";
export const root = new URL(document.documentElement.dataset["root"] ?? "./", document.baseURI);

/** A response with an error, or none at all (status 0). */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {string} code
   * @param {string} message
   */
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** The API key; it stays in this tab, also when the page is loaded again. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  /** @param {string} value */
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/**
 * Rank documents.
 * @param {string} model
 * @param {ScoreRequest} body
 * @param {AbortSignal} signal
 * @returns {Promise<{ answer: ScoreResponse, times: Times }>}
 */
export async function score(model, body, signal) {
  const started = performance.now();
  const response = await send("POST", `v1/score/${path(model)}`, body, signal);
  const answer = await response.json();
  return { answer, times: times(response.headers, performance.now() - started) };
}

/**
 * Show what the model reads.
 * @param {string} model
 * @param {ScoreRequest} body
 * @returns {Promise<InspectResponse>}
 */
export async function inspect(model, body) {
  return (await send("POST", `v1/inspect/${path(model)}`, body)).json();
}

/** @returns {Promise<ModelInfo[]>} */
export async function listModels() {
  return (await (await send("GET", "v1/models")).json()).models;
}

/** @param {string} model @returns {Promise<ModelInfo>} */
export async function getModel(model) {
  return (await send("GET", `v1/models/${path(model)}`)).json();
}

/**
 * The path of a model id, in which slashes stay slashes.
 * @param {string} model
 */
export const path = (model) => model.split("/").map(encodeURIComponent).join("/").replace(/'/g, "%27");

/**
 * @param {string} method
 * @param {string} address
 * @param {ScoreRequest} [body]
 * @param {AbortSignal} [signal]
 */
async function send(method, address, body, signal) {
  /** @type {Record<string, string>} */
  const headers = { Accept: "application/json" };
  if (key.get()) headers["Authorization"] = `Bearer ${key.get()}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(address, root), { method, headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, "NO_ANSWER", "The server cannot be reached. Check that it is running, then try again.");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

/** @param {Response} response */
async function failure(response) {
  const found = await response.json().catch(() => null);
  const message = found?.error?.message ?? `the server answered ${response.status} ${response.statusText}`;
  return new ApiError(response.status, found?.error?.code ?? "", message);
}

/**
 * @param {Headers} headers
 * @param {number} browser
 * @returns {Times}
 */
function times(headers, browser) {
  const read = (/** @type {string} */ name) => Number(headers.get(name) ?? 0);
  return {
    queue: read("X-Queue-Time"),
    tokenize: read("X-Tokenization-Time"),
    inference: read("X-Inference-Time"),
    server: read("X-Total-Time"),
    browser,
  };
}
