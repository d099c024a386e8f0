/**
 * The request of the page as code for curl, Python and TypeScript. The key is never written into it.
 *
 * @typedef {import("./api.js").ScoreRequest} ScoreRequest
 */

import { key, path, root } from "./api.js";

/** @type {{ id: string, title: string, write: (model: string, body: ScoreRequest) => string }[]} */
export const LANGUAGES = [
  { id: "curl", title: "curl", write: curl },
  { id: "python", title: "Python", write: python },
  { id: "typescript", title: "TypeScript", write: typescript },
];

const base = root.href.replace(/\/$/, "");

/** @param {string} model @param {ScoreRequest} body */
function curl(model, body) {
  const headers = ["Content-Type: application/json", "Accept: application/json"].map((each) => `  -H '${each}' \\\n`);
  if (key.get()) headers.push('  -H "Authorization: Bearer $SIE_API_KEY" \\\n');
  return `curl -s '${base}/v1/score/${path(model)}' \\\n${headers.join("")}  -d @- <<'JSON'\n${pretty(body)}\nJSON`;
}

/** @param {string} model @param {ScoreRequest} body */
function python(model, body) {
  const more = rest(body).map(([name, value]) => `, ${name}=${literal(value)}`);
  const items = body.items.map((item) => `    ${literal(item)},\n`).join("");
  return (
    `from sie_sdk import SIEClient${key.get() ? "  # reads SIE_API_KEY" : ""}\n\nclient = SIEClient("${base}")\n` +
    `query = ${literal(body.query)}\nitems = [\n${items}]\n` +
    `result = client.score(${JSON.stringify(model)}, query, items${more.join("")})\n` +
    'for entry in result["scores"]:\n    print(entry["rank"], entry["item_id"], f"{entry[\'score\']:.4f}")'
  );
}

/** @param {string} model @param {ScoreRequest} body */
function typescript(model, body) {
  const items = body.items.map((item) => `  ${JSON.stringify(item)},\n`).join("");
  const options = Object.fromEntries(rest(body).map(([name, value]) => [name, name === "options" ? camel(value) : value]));
  const more = Object.keys(options).length ? `, ${JSON.stringify(options)}` : "";
  const note = key.get() ? " // reads SIE_API_KEY in Node" : "";
  return (
    `import { SIEClient } from "@superlinked/sie-sdk";${note}\n\nconst client = new SIEClient("${base}");\n` +
    `const query = ${JSON.stringify(body.query)};\nconst items = [\n${items}];\n` +
    `const result = await client.score(${JSON.stringify(model)}, query, items${more});\n` +
    "for (const entry of result.scores) console.log(entry.rank, entry.itemId, entry.score.toFixed(4));"
  );
}

/**
 * The fields of a request other than query and items.
 * @param {ScoreRequest} body
 * @returns {[string, any][]}
 */
const rest = (body) => Object.entries(body).filter(([name]) => name !== "query" && name !== "items");

/** @param {ScoreRequest} body one item a line */
function pretty(body) {
  const items = body.items.map((item) => `    ${JSON.stringify(item)}`).join(",\n");
  const more = rest(body).map(([name, value]) => `,\n  "${name}": ${JSON.stringify(value)}`);
  return `{\n  "query": ${JSON.stringify(body.query)},\n  "items": [\n${items}\n  ]${more.join("")}\n}`;
}

/**
 * A value in Python. JSON's texts and numbers are also Python's.
 * @param {unknown} value
 * @returns {string}
 */
function literal(value) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  const fields = Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${literal(each)}`);
  return `{${fields.join(", ")}}`;
}

/** @param {Record<string, unknown>} options */
const camel = (options) =>
  Object.fromEntries(Object.entries(options).map(([name, value]) => [name.replace(/_(\w)/g, (_, c) => c.toUpperCase()), value]));
