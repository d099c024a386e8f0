/**
 * The order of the first stage next to the order of the model, with lines between equal documents.
 *
 * @typedef {import("./documents.js").Doc} Doc
 * @typedef {import("./api.js").ScoreRequest} ScoreRequest
 * @typedef {import("wire").ScoreEntry} ScoreEntry
 * @typedef {{
 *   model: string, body: ScoreRequest, candidates: Doc[], first: number[] | null, entries: (ScoreEntry & { place: number })[],
 *   scoreType: string,
 * }} Run `candidates` in the order of the first stage, `first` their scores; `place` is an entry's index among them
 */

import { detail } from "./detail.js";
import { cut } from "./documents.js";
import { el, fill } from "./dom.js";

/**
 * Show both orders.
 * @param {HTMLElement} board
 * @param {Run} run
 */
export function showResults(board, run) {
  const lines = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  lines.setAttribute("class", "lines");
  lines.setAttribute("aria-hidden", "true");
  const place = new Map(run.entries.map((entry) => [entry.place, entry.rank]));
  const before = run.candidates.map((document, i) => firstRow(run, document, i, place.get(i)));
  const after = run.entries.map((entry) => rerankedRow(run, entry));
  const stage = run.first ? "First stage: BM25" : "First stage: as given";
  fill(
    board,
    column("before", stage, run.first ? "score" : "", before),
    lines,
    column("after", "Reranked", run.scoreType, after),
  );
  follow(board, lines, run, before, after);
}

/**
 * @param {string} kind
 * @param {string} title
 * @param {string} unit
 * @param {HTMLElement[]} rows
 */
function column(kind, title, unit, rows) {
  const heading = el("h2", { id: `${kind}-title` }, title, unit && el("span", { class: "unit" }, unit));
  return el("section", { class: `column ${kind}` }, heading, el("ol", { "aria-labelledby": `${kind}-title` }, ...rows));
}

/** @param {Run} run @param {Doc} document @param {number} place @param {number | undefined} rank */
function firstRow(run, document, place, rank) {
  const score = run.first?.[place];
  return el(
    "li",
    { class: "row", "data-place": place },
    el("span", { class: "rank" }, place + 1),
    el("span", { class: "name" }, nameOf(document, run.body.items[place]?.id, place)),
    rank === undefined ? null : el("span", { class: "sr-only" }, `now ${rank + 1}`),
    score === undefined ? null : bar(score, share(score, 0, Math.max(...(run.first ?? []))), 2),
  );
}

/** @param {Run} run @param {Run["entries"][number]} entry */
function rerankedRow(run, entry) {
  const document = /** @type {Doc} */ (run.candidates[entry.place]);
  const id = `document-${entry.place}`;
  const panel = el("div", { class: "detail", id, hidden: true });
  const head = el(
    "button",
    { type: "button", class: "head", "aria-expanded": "false", "aria-controls": id },
    el("span", { class: "rank" }, entry.rank + 1),
    el(
      "span",
      { class: "what" },
      el("span", { class: "name" }, nameOf(document, run.body.items[entry.place]?.id, entry.place)),
      moved(entry.place - entry.rank),
      entry.truncated && el("span", { class: "badge warn" }, "truncated"),
      entry.chunk && entry.chunk.count > 1 && el("span", { class: "badge" }, `window ${entry.chunk.index + 1} of ${entry.chunk.count}`),
      el("span", { class: "snippet" }, snippet(document.text, entry.chunk)),
    ),
    bar(entry.score, scale(run, entry.score), 3),
  );
  head.addEventListener("click", () => {
    if (!panel.childElementCount) fill(panel, detail(run, entry, document));
    panel.hidden = !panel.hidden;
    head.setAttribute("aria-expanded", String(!panel.hidden));
  });
  return el("li", { class: "row", "data-place": entry.place }, head, panel);
}

/** @param {number} up */
function moved(up) {
  if (!up) return el("span", { class: "moved", title: "same rank as in the first stage" }, "=");
  const words = `${up > 0 ? "up" : "down"} ${Math.abs(up)} from the first stage`;
  return el(
    "span",
    { class: `moved ${up > 0 ? "up" : "down"}`, title: words },
    el("span", { "aria-hidden": "true" }, `${up > 0 ? "▲" : "▼"}${Math.abs(up)}`),
    el("span", { class: "sr-only" }, words),
  );
}

/** @param {number} score @param {number} width @param {number} digits */
function bar(score, width, digits) {
  return el(
    "span",
    { class: "bar" },
    el("span", { class: "number" }, score.toFixed(digits)),
    el("span", { class: "track", "aria-hidden": "true" }, el("span", { class: "fill", vars: { width: `${100 * width}%` } })),
  );
}

/** The length of a bar: probabilities have a scale of their own, other scores that of the list. */
const scale = (/** @type {Run} */ run, /** @type {number} */ score) => {
  if (run.scoreType === "probability") return score;
  const scores = run.entries.map((entry) => entry.score);
  return share(score, Math.min(0, ...scores), Math.max(...scores));
};

/** @param {number} value @param {number} low @param {number} high */
const share = (value, low, high) => (high > low ? (value - low) / (high - low) : 0);

/** @param {Doc} document @param {string | null | undefined} id @param {number} place */
const nameOf = (document, id, place) => document.title || id || document.id || shortened(document.text, 60) || `document ${place + 1}`;

/** @param {string} text @param {number} most */
function shortened(text, most) {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length > most ? `${line.slice(0, most).replace(/\s\S*$/, "")} …` : line;
}

/** @param {string} text @param {ScoreEntry["chunk"]} chunk the best window, if the text was split */
function snippet(text, chunk) {
  const inner = chunk && chunk.index > 0;
  // a window may start inside a word, with the rest of a sentence's punctuation
  const from = inner ? cut(text, chunk.start - 1, chunk.end).replace(/^[\p{L}\p{N}]*[^\p{L}\p{N}]+/u, "") : text;
  return (inner ? "… " : "") + shortened(from, 220);
}

/**
 * Draw a line between the rows of each document, and light both rows up when one is pointed at.
 * @param {HTMLElement} board
 * @param {SVGElement} lines
 * @param {Run} run
 * @param {HTMLElement[]} before
 * @param {HTMLElement[]} after
 */
function follow(board, lines, run, before, after) {
  const middle = (/** @type {Element} */ row, /** @type {number} */ top) => {
    const head = (row.querySelector(".head") ?? row).getBoundingClientRect();
    return head.top + Math.min(head.height / 2, 22) - top;
  };
  const draw = () => {
    const { top, width, height } = lines.getBoundingClientRect();
    lines.replaceChildren();
    if (!width || !height) return;
    run.entries.forEach((entry, i) => {
      const [from, to] = [before[entry.place], after[i]];
      if (!from || !to) return;
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      const [a, b] = [middle(from, top), middle(to, top)];
      path.setAttribute("d", `M0 ${a}C${width / 2} ${a} ${width / 2} ${b} ${width} ${b}`);
      path.setAttribute("class", entry.place > entry.rank ? "up" : entry.place < entry.rank ? "down" : "same");
      path.dataset["place"] = String(entry.place);
      lines.append(path);
    });
  };
  const light = (/** @type {Event} */ event) => {
    const row = event.target instanceof Element ? event.target.closest("[data-place]") : null;
    const place = row?.getAttribute("data-place");
    for (const each of board.querySelectorAll("[data-place]")) each.classList.toggle("lit", each.getAttribute("data-place") === place);
  };
  for (const name of ["pointerover", "focusin"]) board.addEventListener(name, light);
  board.addEventListener("pointerleave", light);
  new ResizeObserver(draw).observe(board);
}
