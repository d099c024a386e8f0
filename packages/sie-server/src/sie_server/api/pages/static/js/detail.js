/**
 * One reranked document: its text with the best window, what the model reads, and which tokens match.
 *
 * @typedef {import("./results.js").Run} Run
 * @typedef {import("./documents.js").Doc} Doc
 * @typedef {import("wire").InspectedText} InspectedText
 * @typedef {import("./api.js").InspectResponse} InspectResponse
 */

import { inspect } from "./api.js";
import { cut } from "./documents.js";
import { el, fill, tabbed } from "./dom.js";
import { heatmap } from "./heatmap.js";

/**
 * @param {Run} run
 * @param {Run["entries"][number]} entry
 * @param {Doc} document
 */
export function detail(run, entry, document) {
  /** @type {Promise<InspectResponse> | undefined} */
  let reading;
  const read = () => (reading ??= inspect(run.model, alone(run, entry.place, {})));
  const id = `tabs-${entry.place}`;
  const tabs = [
    { id: `${id}-text`, title: "Text", show: (/** @type {HTMLElement} */ panel) => showText(panel, document, entry, read) },
    {
      id: `${id}-prompt`,
      title: "Model input",
      show: (/** @type {HTMLElement} */ panel) => later(panel, read, (shown) => sequences(shown, entry)),
    },
  ];
  if (run.scoreType === "maxsim") {
    const compare = () => inspect(run.model, alone(run, entry.place, { token_scores: true }));
    tabs.push({
      id: `${id}-tokens`,
      title: "Token matches",
      show: (panel) => later(panel, compare, (shown) => matches(shown, entry)),
    });
  }
  return tabbed(`Document ${entry.rank + 1}`, tabs);
}

/**
 * The request of the page for one document.
 * @param {Run} run
 * @param {number} place
 * @param {Record<string, unknown>} options
 */
function alone(run, place, options) {
  const item = run.body.items[place];
  return { ...run.body, items: item ? [item] : [], options: { ...(run.body.options ?? {}), ...options } };
}

/**
 * Fill a panel when an answer is there, or with its error.
 * @param {HTMLElement} panel
 * @param {() => Promise<InspectResponse>} ask
 * @param {(shown: InspectResponse) => Node[]} build
 */
async function later(panel, ask, build) {
  fill(panel, el("p", { class: "quiet", role: "status" }, "Reading …"));
  try {
    fill(panel, build(await ask()));
  } catch (error) {
    fill(panel, el("p", { class: "error", role: "alert" }, /** @type {Error} */ (error).message));
  }
}

/**
 * The text, with the best window marked or the part that was not read greyed.
 * @param {HTMLElement} panel
 * @param {Doc} document
 * @param {Run["entries"][number]} entry
 * @param {() => Promise<InspectResponse>} read
 */
function showText(panel, { text }, entry, read) {
  const { chunk } = entry;
  if (chunk && chunk.count > 1) {
    const marked = el("mark", {}, cut(text, chunk.start, chunk.end));
    const note = `The best of ${chunk.count} windows is marked: characters ${chunk.start} to ${chunk.end}.`;
    fill(panel, el("p", { class: "quiet" }, note), el("p", { class: "text", tabindex: "0" }, cut(text, 0, chunk.start), marked, cut(text, chunk.end)));
    return;
  }
  fill(panel, el("p", { class: "text", tabindex: "0" }, text));
  if (!entry.truncated) return;
  later(panel, read, (shown) => {
    const end = shown.items[0]?.read_to;
    if (end === undefined) return [el("p", { class: "quiet" }, "The model did not read all of it."), el("p", { class: "text", tabindex: "0" }, text)];
    const note = `The model read the first ${end} of ${[...text].length} characters. The option “Score windows” reads all of it.`;
    return [
      el("p", { class: "quiet" }, note),
      el("p", { class: "text", tabindex: "0" }, cut(text, 0, end), el("span", { class: "unread" }, cut(text, end))),
    ];
  });
}

/**
 * Every sequence of tokens, and which one the score is from.
 * @param {InspectResponse} shown
 * @param {Run["entries"][number]} entry
 */
function sequences(shown, entry) {
  const parts = shown.query ? [sequence("Query", shown.query, shown)] : [];
  for (const item of shown.items) {
    const { chunk } = item;
    const best = chunk && chunk.count > 1 && chunk.index === entry.chunk?.index;
    const title = chunk && chunk.count > 1 ? `Window ${chunk.index + 1} of ${chunk.count}${best ? ", the best" : ""}` : "Document";
    parts.push(sequence(shown.query ? title : title.replace("Document", "Query and document"), item, shown));
  }
  return parts;
}

/** @param {string} title @param {InspectedText} text @param {InspectResponse} shown */
function sequence(title, text, shown) {
  const length = `${text.tokens.length} tokens, at most ${shown.max_seq_length}${text.truncated ? ", truncated" : ""}`;
  const tokens = el("details", {}, el("summary", {}, "Token by token"));
  tokens.addEventListener("toggle", () => {
    if (tokens.open && tokens.childElementCount === 1) tokens.append(chips(text));
  });
  return el(
    "section",
    { class: "sequence" },
    el("h3", {}, title, el("span", { class: "unit" }, length)),
    el("pre", { tabindex: "0", "aria-label": title }, text.text),
    tokens,
  );
}

/** @param {InspectedText} text */
function chips(text) {
  const made = text.tokens.map((token, i) =>
    el("span", { class: i === text.position ? "token readout" : "token", title: `${i}: id ${text.token_ids[i]}` }, token),
  );
  return el("p", { class: "chips" }, ...made);
}

/** @param {InspectResponse} shown @param {Run["entries"][number]} entry */
function matches(shown, entry) {
  const item = shown.items[entry.chunk?.index ?? 0];
  return item ? heatmap(shown, item) : [];
}
