/**
 * The page: inputs → one request → both orders.
 *
 * @typedef {import("./documents.js").Format} Format
 * @typedef {import("./documents.js").Doc} Doc
 * @typedef {import("./api.js").ScoreRequest} ScoreRequest
 * @typedef {{ model: string, body: ScoreRequest, candidates: Doc[], first: number[] | null, total: number, firstMs: number }} Request
 */

import { ApiError, getModel, key, listModels, score } from "./api.js";
import { bm25, ranked } from "./bm25.js";
import { NAMES, parse } from "./documents.js";
import { byId, el, fill, tabbed } from "./dom.js";
import { fillModels, showModel } from "./models.js";
import { showResults } from "./results.js";
import { LANGUAGES } from "./snippets.js";

const LARGE = 300_000; // characters; a larger file is not put into the text field
const SHOWN = 60_000; // characters of a request as code; the button copies all
const POLL_MS = 1000;

const form = byId("form", HTMLFormElement);
const model = byId("model", HTMLSelectElement);
const query = byId("query", HTMLTextAreaElement);
const documents = byId("documents", HTMLTextAreaElement);
const format = byId("format", HTMLSelectElement);
const firstStage = byId("first", HTMLSelectElement);
const most = byId("most", HTMLInputElement);
const long = byId("long", HTMLSelectElement);
const instruction = byId("instruction", HTMLInputElement);
const run = byId("run", HTMLButtonElement);
const status = byId("status", HTMLElement);
const code = byId("code", HTMLDetailsElement);

/** @type {{ name: string, text: string } | null} a file that is too large for the text field */
let file = null;
/** @type {AbortController | null} of the request that runs */
let running = null;

// ── models and the key ──

async function openModels() {
  try {
    await refreshModels();
    showProblem(null);
  } catch (error) {
    showProblem(error);
  }
}

async function refreshModels() {
  fillModels(model, await listModels());
  await refreshModel();
}

async function refreshModel() {
  if (!model.value) return null;
  const info = await getModel(model.value).catch(() => null);
  if (info) showModel(byId("state", HTMLElement), byId("facts", HTMLElement), info);
  return info;
}

/** @param {unknown} error null: there is none */
function showProblem(error) {
  const place = byId("problem", HTMLElement);
  if (error === null) return fill(place);
  const known = error instanceof ApiError ? error : null;
  if (known?.status === 401) byId("key-field", HTMLElement).hidden = false;
  const title = known?.status === 401 ? "This server needs an API key" : "No result";
  const message = error instanceof Error ? error.message : String(error);
  fill(place, el("div", { class: "error" }, el("strong", {}, title), el("p", {}, message), known?.code && el("code", {}, `${known.status || ""} ${known.code}`)));
}

// ── documents ──

function parsed() {
  return parse(file?.text ?? documents.value, /** @type {Format | "auto"} */ (format.value));
}

function showDocuments() {
  const { documents: found, format: read, problem } = parsed();
  const count = `${found.length} ${found.length === 1 ? "document" : "documents"}, read as ${NAMES[read]}`;
  fill(byId("documents-note", HTMLElement), count, problem && el("span", { class: "warn" }, ` ${problem}`));
}

/** @param {File | undefined} chosen */
async function open(chosen) {
  if (!chosen) return;
  const text = await chosen.text();
  file = text.length > LARGE ? { name: chosen.name, text } : null;
  documents.value = file ? "" : text;
  documents.hidden = file !== null;
  const place = byId("file", HTMLElement);
  place.hidden = file === null;
  fill(place, file && [`${chosen.name}, ${(chosen.size / 2 ** 20).toFixed(1)} MiB`]);
  format.value = "auto";
  showDocuments();
}

function clear() {
  file = null;
  documents.value = "";
  documents.hidden = false;
  byId("file", HTMLElement).hidden = true;
  showDocuments();
  documents.focus();
}

// ── the request ──

/** @returns {Request} */
function request() {
  const { documents: found } = parsed();
  const started = performance.now();
  const scores = firstStage.value === "bm25" ? bm25(query.value, found.map(({ text }) => text)) : null;
  const order = (scores ? ranked(scores) : found.map((_, i) => i)).slice(0, Math.max(1, Number(most.value) || 1));
  const firstMs = performance.now() - started;
  const candidates = order.map((i) => /** @type {Doc} */ (found[i]));
  const ids = new Set(candidates.map(({ id }) => id));
  const named = ids.size === candidates.length && !ids.has(undefined); // ids that are not unique would mix documents up
  const items = candidates.map(({ id, text }) => (named ? { id, text } : { text }));
  /** @type {ScoreRequest} */
  const body = { query: { text: query.value }, items };
  if (instruction.value.trim()) body.instruction = instruction.value.trim();
  if (long.value === "chunk") body.options = { long_document: "chunk" };
  const first = scores && order.map((i) => scores[i] ?? 0);
  return { model: model.value, body, candidates, first, total: found.length, firstMs };
}

async function rerank() {
  const sent = request();
  if (!sent.model) return showProblem(new Error("Choose a model first. The list is empty until the server has answered."));
  if (!sent.candidates.length) return showProblem(new Error("There are no documents. Paste some, or open a file."));
  showProblem(null);
  const control = (running = new AbortController());
  form.classList.add("busy");
  run.textContent = "Cancel";
  say(`Reranking ${sent.candidates.length} documents with ${sent.model} …`);
  const watch = setInterval(() => control.signal.aborted || waitFor(sent.model), POLL_MS);
  try {
    const { answer, times } = await scored(sent, control.signal);
    show(sent, answer, times);
  } catch (error) {
    say(control.signal.aborted ? "Cancelled." : "");
    if (!control.signal.aborted) showProblem(error);
  } finally {
    clearInterval(watch);
    running = null;
    form.classList.remove("busy");
    run.textContent = "Rerank";
    refreshModels().catch(() => null); // the request may have loaded the model, and unloaded others
  }
}

/** @param {string} name */
async function waitFor(name) {
  const info = await refreshModel();
  if (info?.state === "loading") say(`Loading ${name} …`);
}

/**
 * Send the request. If the server says that the model is still loading, wait for that and send it once more.
 * @param {Request} sent
 * @param {AbortSignal} signal
 */
async function scored(sent, signal) {
  try {
    return await score(sent.model, sent.body, signal);
  } catch (error) {
    if (!(error instanceof ApiError) || error.code !== "MODEL_LOADING") throw error;
    while ((await getModel(sent.model)).state === "loading") {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      signal.throwIfAborted();
    }
    return score(sent.model, sent.body, signal);
  }
}

// ── the result ──

/**
 * @param {Request} sent
 * @param {import("./api.js").ScoreResponse} answer
 * @param {import("./api.js").Times} times
 */
function show(sent, answer, times) {
  const places = new Map(sent.body.items.map((item, i) => [item.id ?? `item-${i}`, i]));
  const entries = answer.scores.map((entry) => ({ ...entry, place: places.get(entry.item_id) ?? 0 }));
  const moved = entries.filter((entry) => entry.place !== entry.rank).length;
  const top = entries[0]?.place ?? 0;
  const change = top ? `The best document was number ${top + 1} of the first stage.` : "Both stages agree on the best document.";
  say(`${entries.length} of ${sent.total} documents reranked, ${moved} moved. ${change}`);
  byId("welcome", HTMLElement).hidden = true;
  showTimes(sent, answer, times);
  showResults(byId("board", HTMLElement), { ...sent, entries, scoreType: answer.score_type });
  showCode();
  if (matchMedia("(max-width: 899px)").matches) byId("results", HTMLElement).scrollIntoView();
}

/**
 * One bar of all stages in milliseconds, and the warnings of the server.
 * @param {Request} sent
 * @param {import("./api.js").ScoreResponse} answer
 * @param {import("./api.js").Times} times
 */
function showTimes(sent, answer, times) {
  const inside = times.queue + times.tokenize + times.inference;
  /** @type {[string, string, number][]} */
  const stages = [
    ["bm25", "BM25", sent.first ? sent.firstMs : 0],
    ["network", "network", Math.max(0, times.browser - times.server)],
    ["queue", "queue", times.queue],
    ["tokenize", "tokenise", times.tokenize],
    ["model", "model", times.inference],
    ["rest", "rest of the server", Math.max(0, times.server - inside)],
  ];
  const total = stages.reduce((sum, [, , ms]) => sum + ms, 0) || 1;
  const place = byId("summary", HTMLElement);
  place.hidden = false;
  fill(
    place,
    el(
      "div",
      { class: "stages", "aria-hidden": "true" },
      stages.map(([name, , ms]) => el("span", { class: `stage ${name}`, vars: { width: `${(100 * ms) / total}%` } })),
    ),
    el(
      "ul",
      { class: "legend" },
      stages.map(([name, title, ms]) => el("li", { class: name }, title, " ", el("b", {}, ms.toFixed(1)))),
      el("li", { class: "total" }, "total ", el("b", {}, `${total.toFixed(1)} ms`)),
      el("li", { class: "total" }, el("b", {}, answer.usage.input_tokens.toLocaleString("en")), " tokens"),
    ),
    (answer.warnings ?? []).map((text) => el("p", { class: "warn" }, text)),
  );
}

/** @param {string} text */
function say(text) {
  status.textContent = text;
}

// ── the request as code ──

function showCode() {
  if (!code.open) return;
  const sent = request();
  const tabs = LANGUAGES.map(({ id, title, write }) => ({
    id: `code-${id}`,
    title,
    show: (/** @type {HTMLElement} */ panel) => {
      const text = write(sent.model, sent.body);
      const shown = text.length > SHOWN ? `${text.slice(0, SHOWN)}\n… the button copies all ${text.length} characters` : text;
      const button = el("button", { type: "button", class: "copy" }, "Copy");
      button.addEventListener("click", () => copy(text, button));
      fill(panel, button, el("pre", { tabindex: "0", "aria-label": `Request in ${title}` }, shown));
    },
  }));
  fill(byId("snippets", HTMLElement), tabbed("Language", tabs));
}

/**
 * Copy a text. Browsers have `navigator.clipboard` only on localhost and with TLS.
 * @param {string} text
 * @param {HTMLButtonElement} button
 */
async function copy(text, button) {
  const area = el("textarea", { class: "sr-only", "aria-hidden": "true" });
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else {
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
    }
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed by the browser";
  } finally {
    area.remove();
  }
}

// ── events ──

/** @param {() => void} action @param {number} ms */
function debounced(action, ms) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, ms);
  };
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else rerank();
});
query.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) rerank();
});
byId("key", HTMLInputElement).addEventListener("change", (event) => {
  key.set(/** @type {HTMLInputElement} */ (event.target).value.trim());
  openModels();
});
model.addEventListener("change", refreshModel);
documents.addEventListener("input", debounced(showDocuments, 150));
format.addEventListener("change", showDocuments);
form.addEventListener("input", debounced(showCode, 300));
code.addEventListener("toggle", showCode);
byId("clear", HTMLButtonElement).addEventListener("click", clear);
byId("pick", HTMLInputElement).addEventListener("change", (event) => {
  const input = /** @type {HTMLInputElement} */ (event.target);
  open(input.files?.[0]);
  input.value = "";
});
for (const name of /** @type {const} */ (["dragover", "dragleave", "drop"])) {
  addEventListener(name, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.toggle("dropping", name === "dragover");
    if (name === "drop") open(event.dataTransfer.files[0]);
  });
}

fill(format, [...format.options], Object.entries(NAMES).map(([value, name]) => el("option", { value }, `Format: ${name}`)));
byId("key", HTMLInputElement).value = key.get();
byId("key-field", HTMLElement).hidden = !key.get();
showDocuments();
openModels();
