/**
 * Documents from pasted text or a file: JSON lines, a JSON array, CSV or TSV, paragraphs or lines.
 *
 * @typedef {{ id?: string, title?: string, text: string }} Doc
 * @typedef {"json" | "jsonl" | "csv" | "paragraphs" | "lines"} Format
 * @typedef {{ documents: Doc[], format: Format, problem: string }} Parsed
 */

/** @type {Record<Format, string>} */
export const NAMES = {
  json: "JSON array",
  jsonl: "JSON lines",
  csv: "CSV or TSV",
  paragraphs: "paragraphs",
  lines: "one per line",
};
const TEXTS = ["text", "document", "content", "passage", "body", "contents"];
const IDS = ["id", "_id", "doc_id", "docid"];
const TITLES = ["title", "name", "heading"];

/**
 * Read documents. An unreadable part is named in `problem`, and the others are kept.
 * @param {string} text
 * @param {Format | "auto"} format
 * @returns {Parsed}
 */
export function parse(text, format = "auto") {
  const plain = text.replace(/^\uFEFF/, "").replace(/\r\n?/g, "\n");
  const chosen = format === "auto" ? detect(plain) : format;
  const { documents, problem } = readers[chosen](plain);
  return { documents: documents.filter((document) => document.text.trim()), format: chosen, problem };
}

/** @param {string} text @returns {Format} */
function detect(text) {
  const start = text.trimStart();
  if (start.startsWith("[") && isJson(start)) return "json";
  const first = start.split("\n", 1)[0] ?? "";
  if (/^[{"]/.test(first) && isJson(first)) return "jsonl";
  if (/[,;\t]/.test(first) && columns(first).some((name) => TEXTS.includes(name))) return "csv";
  return /\n[ \t]*\n/.test(text.trim()) ? "paragraphs" : "lines";
}

/** @param {string} text */
function isJson(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

/** @type {Record<Format, (text: string) => { documents: Doc[], problem: string }>} */
const readers = {
  json(text) {
    try {
      const values = JSON.parse(text);
      return fromValues(Array.isArray(values) ? values : [values], "item");
    } catch (error) {
      return { documents: [], problem: `This is not JSON: ${/** @type {Error} */ (error).message}` };
    }
  },
  jsonl(text) {
    let problem = "";
    const values = text.split("\n").map((line, i) => {
      try {
        return line.trim() ? JSON.parse(line) : null;
      } catch {
        problem ||= `Line ${i + 1} is not JSON and was left out.`;
        return null;
      }
    });
    const found = fromValues(values, "line");
    return { documents: found.documents, problem: problem || found.problem };
  },
  csv: readTable,
  paragraphs: (text) => ({ documents: text.split(/\n[ \t]*\n/).map((part) => ({ text: part.trim() })), problem: "" }),
  lines: (text) => ({ documents: text.split("\n").map((line) => ({ text: line.trim() })), problem: "" }),
};

/**
 * @param {unknown[]} values
 * @param {string} unit
 */
function fromValues(values, unit) {
  let problem = "";
  const documents = values.flatMap((value, i) => {
    if (value === null) return [];
    const found = typeof value === "string" ? { text: value } : fromRecord(/** @type {any} */ (value));
    if (!found) problem ||= `The ${unit} ${i + 1} has no text and was left out. A text is in one of the fields ${TEXTS.join(", ")}.`;
    return found ? [found] : [];
  });
  return { documents, problem };
}

/**
 * @param {Record<string, unknown>} record
 * @returns {Doc | null}
 */
function fromRecord(record) {
  const read = (/** @type {string[]} */ names) => {
    const name = names.find((each) => typeof record?.[each] === "string" || typeof record?.[each] === "number");
    return name === undefined ? undefined : String(record[name]);
  };
  const text = read(TEXTS);
  return text === undefined ? null : { id: read(IDS), title: read(TITLES), text };
}

/** @param {string} text */
function readTable(text) {
  const rows = cells(text, separator(text.split("\n", 1)[0] ?? ""));
  const header = (rows[0] ?? []).map((name) => name.trim().toLowerCase());
  const named = header.some((name) => TEXTS.includes(name));
  if (named) {
    const records = rows.slice(1).map((row) => Object.fromEntries(header.map((name, i) => [name, row[i] ?? ""])));
    return fromValues(records, "row");
  }
  // without a header, the longest column is the text
  const widths = (rows[0] ?? []).map((_, i) => rows.reduce((sum, row) => sum + (row[i]?.length ?? 0), 0));
  const widest = widths.indexOf(Math.max(...widths));
  const problem = rows.length ? `No column is named ${TEXTS.join(", ")}: column ${widest + 1} was taken as the text.` : "";
  return { documents: rows.map((row) => ({ text: row[widest] ?? "" })), problem };
}

/**
 * Characters [start, end) as the server counts them: a character outside the first plane is one.
 * @param {string} text
 * @param {number} start
 * @param {number} [end]
 */
export function cut(text, start, end) {
  return /[\ud800-\udfff]/.test(text) ? [...text].slice(start, end).join("") : text.slice(start, end);
}

/** @param {string} line */
const separator = (line) => ["\t", ";", ","].find((each) => line.includes(each)) ?? ",";

/** @param {string} line */
const columns = (line) => (cells(line, separator(line))[0] ?? []).map((name) => name.trim().toLowerCase());

/**
 * The cells of a table (RFC 4180): a quoted cell may contain separators, lines and doubled quotes.
 * @param {string} text
 * @param {string} by
 * @returns {string[][]}
 */
function cells(text, by) {
  /** @type {string[][]} */
  const rows = [];
  /** @type {string[]} */
  let row = [];
  let cell = "";
  let quoted = false;
  for (let i = 0; i < text.length; i++) {
    const character = text.charAt(i);
    if (quoted && character === '"' && text.charAt(i + 1) === '"') cell += text.charAt(i++);
    else if (quoted) character === '"' ? (quoted = false) : (cell += character);
    else if (character === '"' && !cell) quoted = true;
    else if (character === by || character === "\n") {
      row.push(cell);
      cell = "";
      if (character === "\n") row = (rows.push(row), []);
    } else cell += character;
  }
  rows.push([...row, cell]);
  return rows.filter((each) => each.some((found) => found.trim()));
}
