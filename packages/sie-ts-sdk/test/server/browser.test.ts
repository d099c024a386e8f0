/**
 * The built package in headless Chromium, without a bundler: a page that reranks, from an origin that the server allows.
 * Variables: SIE_BASE_URL, SIE_API_KEY, CHROMIUM (the browser) and PAGE_PORT (the port of the page's origin).
 */

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { after, before, test } from "node:test";
import { type Browser, chromium, type Page } from "playwright-core";
import { SIEClient } from "../../src/index.js";

const { SIE_BASE_URL: SERVER = "", SIE_API_KEY: KEY = "", CHROMIUM, PAGE_PORT = "" } = process.env;
const FLAGS = [
  "--no-sandbox", // tests run as root in containers
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
const TYPES: Record<string, string> = { html: "text/html", js: "text/javascript", mjs: "text/javascript" };

/** Serves the package's files. */
const files = createServer(async (request, response) => {
  const path = new URL(request.url ?? "/", "http://localhost").pathname;
  const body = await readFile(`.${path}`).catch(() => undefined);
  response.writeHead(body ? 200 : 404, { "content-type": TYPES[path.split(".").pop() ?? ""] ?? "text/plain" }).end(body);
});
let browser: Browser;

before(async () => {
  files.listen(Number(PAGE_PORT));
  await once(files, "listening");
  browser = await chromium.launch({ executablePath: CHROMIUM ?? "chromium", args: FLAGS });
});
after(async () => {
  await browser?.close();
  files.close();
});

async function open(host: string, key = KEY): Promise<Page> {
  const page = await browser.newPage();
  const given = new URLSearchParams({ server: SERVER, key });
  await page.goto(`http://${host}:${PAGE_PORT}/test/server/page.html?${given}`);
  return page;
}

/** Press the button and return the status text of the page. */
async function rerank(page: Page): Promise<string> {
  await page.getByRole("button").click();
  const status = page.getByRole("status");
  await status.filter({ hasText: /./ }).waitFor();
  return status.innerText();
}

/** Run a function in the page; it may only refer to `client`, which the page defines. */
const inPage = (page: Page, code: string): Promise<unknown> => page.evaluate(`(async () => { ${code} })()`);

test("a page reranks and returns the same results as Node", async () => {
  const page = await open("localhost");
  assert.match(await rerank(page), /^request [!-~]+$/); // the header is readable across origins
  const lines = await page.locator("li").evaluateAll((found) => found.map((line) => [line.textContent, Number((line as HTMLElement).dataset["score"])]));
  const texts = (await page.locator("textarea").inputValue()).split("\n");
  const client = new SIEClient();
  const { scores } = await client.score("sie/mini-en", { text: "What is machine learning?" }, texts.map((text) => ({ text })));
  assert.deepEqual(lines, scores.map((entry) => [texts[Number(entry.itemId.slice(5))], entry.score]));
  assert.equal(lines[2]?.[0], texts[1]);
  await page.close();
});

test("vectors, errors and signals in a page", async () => {
  const page = await open("localhost");
  const dense = await inPage(page, `
    const { dense } = await client.encode("BAAI/bge-m3", { text: "rain" }, { isQuery: true });
    return [dense instanceof Float32Array, Math.hypot(...dense).toFixed(3)];`);
  assert.deepEqual(dense, [true, "1.000"]);
  const failing = (call: string) => inPage(page, `return ${call}.then(() => "no error", (error) => error.name + ": " + error.message)`);
  assert.match(String(await failing('client.getModel("no/model")')), /^ModelNotFoundError: /);
  assert.match(String(await failing('client.listModels({ signal: AbortSignal.abort() })')), /^AbortError: /);
  assert.match(String(await failing('new sie.SIEClient(location.origin).listModels()')), /^RequestError: .* status 404/);
  await page.close();
});

test("a wrong key, and a page of an origin that the server does not allow", async () => {
  const stranger = await open("localhost", "another-key-that-is-wrong");
  assert.match(await rerank(stranger), /^AuthError: .*\(401, UNAUTHORIZED, request/);
  const elsewhere = await open("127.0.0.1");
  assert.match(await rerank(elsewhere), /^SIEConnectionError: cannot connect to .*its cors_origins contain this page's origin/);
  await Promise.all([stranger.close(), elsewhere.close()]);
});
