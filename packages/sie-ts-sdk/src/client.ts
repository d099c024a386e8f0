/** `SIEClient`: `calls` builds the requests, `flow` decides when to retry them, and the client carries out the steps. */

import * as calls from "./calls.js";
import { RequestError } from "./errors.js";
import { fromServer } from "./failures.js";
import { type Clock, exchange, type Outcome } from "./flow.js";
import { type ClientOptions, milliseconds, resolve, type Settings, skewed } from "./settings.js";
import { send, sleep } from "./transport.js";
import type { EncodeOptions, EncodeResult, Item, ModelInfo, ScoreOptions, ScoreResult, WaitOptions } from "./types.js";
import { VERSION } from "./version.js";

const CLOCK: Clock = {
  monotonic: () => performance.now(),
  wall: () => Date.now(),
  random: () => Math.random(),
  requestId: () => `sdk-${Array.from({ length: 4 }, () => hex(Math.random())).join("")}`,
};

/** Eight hexadecimal digits. The ids only distinguish the requests of a client, so the source need not be secure. */
function hex(random: number): string {
  return Math.floor(random * 2 ** 32).toString(16).padStart(8, "0");
}

const followers = new WeakMap<AbortSignal, Set<AbortController>>();

/**
 * Abort `controller` together with `signal`, until the returned function is called.
 *
 * All calls share one listener, because Node warns of more than ten on a signal.
 */
function follow(signal: AbortSignal, controller: AbortController): () => void {
  const all = followers.get(signal) ?? new Set();
  if (!followers.has(signal)) {
    followers.set(signal, all);
    signal.addEventListener("abort", () => all.forEach((one) => one.abort(signal.reason)), { once: true });
  }
  if (signal.aborted) controller.abort(signal.reason);
  all.add(controller);
  return () => all.delete(controller);
}

/** A client of a server. Calls may run concurrently; they reject with a SIEError. */
export class SIEClient {
  readonly #settings: Settings;
  readonly #closing = new AbortController();
  #warnedOfSkew = false;
  #answered = false;

  /** Arguments override SIE_BASE_URL, SIE_API_KEY and SIE_TIMEOUT, which override the defaults. Nothing is sent yet. */
  constructor(baseUrl?: string, options: ClientOptions = {}) {
    this.#settings = resolve(baseUrl, options);
  }

  /** Rank `items` by their relevance to `query`. */
  async score(model: string, query: Item, items: readonly Item[], options?: ScoreOptions): Promise<ScoreResult> {
    return this.#run(calls.score(model, query, items, options));
  }

  /** Return vectors: one result for an item, a list for a list. */
  encode(model: string, item: Item, options?: EncodeOptions): Promise<EncodeResult>;
  encode(model: string, items: readonly Item[], options?: EncodeOptions): Promise<EncodeResult[]>;
  async encode(
    model: string,
    items: Item | readonly Item[],
    options?: EncodeOptions,
  ): Promise<EncodeResult | EncodeResult[]> {
    const results = await this.#run(calls.encode(model, items, options, this.#settings.warn));
    return Array.isArray(items) ? results : (results[0] as EncodeResult);
  }

  /** Return all models that the server can serve. */
  async listModels(options?: WaitOptions): Promise<ModelInfo[]> {
    return this.#run(calls.listModels(options));
  }

  /** Return a model's description without loading it. */
  async getModel(model: string, options?: WaitOptions): Promise<ModelInfo> {
    return this.#run(calls.getModel(model, options));
  }

  /** End all running calls. The client cannot be used afterwards. */
  async close(): Promise<void> {
    this.#closing.abort(new RequestError("the client is closed"));
  }

  async #run<Result>(call: calls.Call<Result>): Promise<Result> {
    const stopped = new AbortController();
    const leave = [this.#closing.signal, call.wait.signal].map((signal) => signal && follow(signal, stopped));
    try {
      stopped.signal.throwIfAborted();
      return await this.#drive(call, stopped.signal);
    } finally {
      for (const end of leave) end?.();
    }
  }

  async #drive<Result>(call: calls.Call<Result>, signal: AbortSignal): Promise<Result> {
    const { baseUrl, timeout, deadline } = this.#settings;
    const ownTimeout = milliseconds("timeout", call.wait.timeout);
    // as in the settings: a timeout above the deadline extends the deadline
    const ownDeadline = milliseconds("deadline", call.wait.deadline) ?? Math.max(deadline, ownTimeout ?? 0);
    const limits = { timeout: ownTimeout ?? timeout, deadline: ownDeadline, giveUp: call.giveUp ?? Infinity };
    const flow = exchange(call.request, { ...limits, url: baseUrl, answered: this.#answered }, CLOCK);
    let outcome: Outcome;
    for (;;) {
      const { done, value: step } = flow.next(outcome);
      if (done) return call.read(step);
      outcome = undefined;
      if (step.kind === "sleep") await sleep(step.ms, signal);
      else outcome = await send(step, this.#settings, signal);
      if (outcome?.kind !== "reply") continue;
      this.#answered ||= fromServer(outcome);
      this.#lookAtVersion(outcome.headers.get("x-sie-server-version"));
    }
  }

  /** Warn once if client and server are more than one minor version apart. */
  #lookAtVersion(server: string | undefined): void {
    if (server === undefined || this.#warnedOfSkew || !skewed(VERSION, server)) return;
    this.#warnedOfSkew = true;
    this.#settings.warn(`version ${VERSION} is connected to a server of version ${server}; some features may differ`);
  }
}
