/**
 * Late interaction: each query token takes its most similar token of the document, and the score adds these up.
 *
 * @typedef {import("wire").InspectedText} InspectedText
 * @typedef {import("./api.js").InspectResponse} InspectResponse
 * @typedef {{ token: string, weight: number, row: number[], best: number }} Row a query token; `best` is a column
 */

import { el, fill } from "./dom.js";

/**
 * @param {InspectResponse} shown
 * @param {InspectedText} item
 */
export function heatmap(shown, item) {
  const found = item.token_scores;
  if (!found) return [el("p", { class: "error" }, "The server sent no similarities.")];
  const { query, query_tokens: of } = shown;
  const rows = found.similarities.map((row, i) => ({
    token: query?.tokens[of?.positions[i] ?? -1] ?? "?",
    weight: of?.weights[i] ?? 1,
    row,
    best: row.indexOf(Math.max(...row)),
  }));
  const columns = found.positions.map((place) => item.tokens[place] ?? "?");
  const pooled = found.pooled === undefined ? "" : ` + ${found.pooled.toFixed(3)} of the pooled vectors`;
  const sum = `Score ${found.score.toFixed(3)} = ${(found.score - (found.pooled ?? 0)).toFixed(3)} of tokens${pooled}.`;
  return [
    el("p", { class: "quiet" }, `${sum} Each query token adds its weight × its best similarity, which is outlined.`),
    reader(rows, found.positions, item.tokens),
    matrix(rows, columns),
  ];
}

/**
 * The document as a line of tokens, coloured by what they add to the score, or by their similarity to one query token.
 * @param {Row[]} rows
 * @param {number[]} positions
 * @param {string[]} tokens
 */
function reader(rows, positions, tokens) {
  const text = el("p", { class: "tokens", tabindex: "0" });
  const spaced = tokens.some((token) => /^[▁Ġ]/.test(token));
  /** @param {number} chosen -1: all query tokens */
  const show = (chosen) => {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i - 1 === chosen)));
    const one = rows[chosen];
    const values = one ? one.row : added(rows, positions.length);
    const most = Math.max(...values.map(Math.abs), 1e-9);
    fill(
      text,
      tokens.flatMap((token, place) => {
        const i = positions.indexOf(place);
        const value = values[i] ?? 0;
        const title = i < 0 ? "not compared" : `${token}: ${value.toFixed(3)}`;
        const heat = i < 0 ? 0 : Math.max(0, one ? value : value / most);
        const piece = el("span", { class: one && one.best === i ? "heat best" : "heat", vars: { heat: shade(heat) }, title }, spelled(token));
        return begins(token, spaced) ? [" ", piece] : piece;
      }),
    );
  };
  const buttons = [{ token: "all query tokens" }, ...rows].map(({ token }, i) =>
    el("button", { type: "button", class: "choice", "aria-pressed": "false", onclick: () => show(i - 1) }, token),
  );
  show(-1);
  return el("div", {}, el("div", { class: "choices", role: "group", "aria-label": "Colour by query token" }, ...buttons), text);
}

/**
 * What each token of the document adds to the score.
 * @param {Row[]} rows
 * @param {number} count
 */
function added(rows, count) {
  const values = new Array(count).fill(0);
  for (const { weight, row, best } of rows) values[best] += weight * (row[best] ?? 0);
  return values;
}

/** @param {Row[]} rows @param {string[]} columns */
function matrix(rows, columns) {
  const values = rows.flatMap(({ row }) => row);
  const low = values.reduce((a, b) => Math.min(a, b), 1);
  const span = values.reduce((a, b) => Math.max(a, b), -1) - low || 1;
  const head = el(
    "tr",
    {},
    el("th", { scope: "col", class: "corner" }, "query token"),
    el("th", { scope: "col" }, "adds"),
    el("th", { scope: "col" }, "best match"),
    columns.map((token) => el("th", { scope: "col", class: "down" }, el("span", {}, token))),
  );
  const body = rows.map(({ token, weight, row, best }) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, token),
      el("td", { class: "adds" }, (weight * (row[best] ?? 0)).toFixed(3)),
      el("td", { class: "match" }, columns[best], " ", el("span", { class: "quiet" }, digits(row[best] ?? 0))),
      row.map((value, i) => {
        const title = `${token} – ${columns[i]}: ${value.toFixed(3)}`;
        return el("td", { class: i === best ? "heat best" : "heat", vars: { heat: shade((value - low) / span) }, title }, digits(value));
      }),
    ),
  );
  const table = el("table", { class: "matrix" }, el("thead", {}, head), el("tbody", {}, ...body));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Similarities of all tokens" }, table);
}

/** @param {number} value two digits after the point, without the zero before it */
const digits = (value) => value.toFixed(2).replace(/^(-?)0\./, "$1.");

/** @param {number} value 0 to 1; small similarities are pale, so that the large ones stand out */
const shade = (value) => (Math.max(0, value) ** 1.6).toFixed(3);

/** @param {string} token without the marks of its vocabulary */
const spelled = (token) => token.replace(/^##|^[▁Ġ]/, "");

/**
 * Whether a token is the first piece of a word.
 * @param {string} token
 * @param {boolean} spaced the vocabulary marks the first piece of a word, not the others
 */
const begins = (token, spaced) => (spaced ? /^[▁Ġ]/.test(token) : !token.startsWith("##"));
