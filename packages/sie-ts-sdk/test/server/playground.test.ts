/**
 * The playground in headless Chromium: with a key, below a prefix, without another host, on a desk and on a phone.
 * Variables: PAGE (address of the page), SIE_API_KEY, CHROMIUM (the browser), OUT (a folder for code and screenshots).
 */

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { type Browser, type BrowserContextOptions, chromium, type Page } from "playwright-core";
import { accessible } from "./axe.js";

const { PAGE = "", SIE_API_KEY: KEY = "", CHROMIUM, OUT = "." } = process.env;
const FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"];
const PHONE = { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true };
let browser: Browser;

before(async () => {
  browser = await chromium.launch({ executablePath: CHROMIUM ?? "chromium", args: FLAGS });
});
after(() => browser?.close());

interface Opened {
  page: Page;
  requests: { method: string; url: string }[];
  problems: string[];
}

/** Open the page with the key; its requests and problems are added to the two lists. */
async function open(options: BrowserContextOptions = {}, key = KEY): Promise<Opened> {
  const page = await browser.newPage(options);
  const requests: Opened["requests"] = [];
  const problems: string[] = [];
  page.on("request", (request) => requests.push({ method: request.method(), url: request.url() }));
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("console", (message) => message.type() === "error" && !message.text().includes("401") && problems.push(message.text()));
  await page.goto(PAGE);
  await page.getByRole("alert").getByText("This server needs an API key").waitFor();
  await page.getByLabel("API key").fill(key);
  await page.getByLabel("API key").press("Tab");
  if (key === KEY) await page.getByText("loaded", { exact: true }).waitFor();
  return { page, requests, problems };
}

async function rerank(page: Page): Promise<void> {
  await page.getByRole("button", { name: "Rerank" }).click();
  await page.getByRole("status").getByText("documents reranked").waitFor();
}

/** The texts of all elements that match. */
const texts = (page: Page, selector: string): Promise<string[]> => page.locator(selector).allInnerTexts();

test("a query is ranked with one request, and every view of a result is filled", async () => {
  const { page, requests, problems } = await open({ viewport: { width: 1360, height: 900 } });
  await rerank(page);
  const posts = requests.filter(({ method }) => method === "POST");
  assert.deepEqual(posts.map(({ url }) => new URL(url).pathname), ["/sie/v1/score/sie/mini-en"]);

  assert.equal((await texts(page, ".before .row")).length, 11);
  const names = await texts(page, ".after .name");
  assert.deepEqual(names.slice(0, 2), ["First aid handbook", "First aid for cardiac arrest"]);
  assert.equal((await texts(page, ".before .name"))[0], "Stops of the pipe organ");
  const scores = (await texts(page, ".after .number")).map(Number);
  assert.deepEqual(scores, [...scores].sort((a, b) => b - a));
  const first = page.locator(".after .row").first();
  assert.match(await first.innerText(), /▲2.*window 2 of 2/s);
  assert.equal(await page.locator(".lines path").count(), 11);
  assert.match(await page.locator("#summary").innerText(), /BM25 \d.*model \d.*total [\d.]+ ms.*\d tokens/s);

  await first.locator(".head").click();
  assert.match(await first.locator("mark").innerText(), /when the heart no longer beats/);
  await first.getByRole("tab", { name: "Text" }).press("ArrowRight");
  await first.getByText("Window 2 of 2, the best").waitFor();
  assert.match(await first.locator("pre").first().innerText(), /^\[CLS\] what to do/);
  await first.getByRole("tab", { name: "Token matches" }).click();
  await first.getByRole("row", { name: /^heart/ }).waitFor();
  assert.match(await first.getByRole("row", { name: /^heart/ }).innerText(), /heart\s+0\.\d+\s+heart \.\d\d/);
  assert.match(await first.getByText(/^Score/).innerText(), new RegExp(`^Score ${scores[0]?.toFixed(3)} = `));
  await first.getByRole("button", { name: "heart", exact: true }).click();
  assert.equal(await first.locator(".tokens .best").innerText(), "heart");
  await accessible(page);
  await page.screenshot({ path: join(OUT, "desk.png") });

  await page.getByText("The same request as code").click();
  for (const language of ["curl", "Python", "TypeScript"]) {
    await page.getByRole("tab", { name: language }).click();
    writeFileSync(join(OUT, `request.${language}`), await page.getByLabel(`Request in ${language}`).innerText());
  }
  writeFileSync(join(OUT, "shown.json"), JSON.stringify(await texts(page, ".after .number")));
  const here = `${new URL(PAGE).origin}/sie`;
  assert.deepEqual(requests.filter(({ url }) => !url.startsWith(here)), []);
  assert.deepEqual(problems, []);
});

test("documents are read in all formats and ranked by BM25", async () => {
  const { page, problems } = await open();
  const read = (text: string, format = "auto") =>
    page.evaluate(
      // as the page imports it; the address is relative to its root
      async ([text, format]) => {
        const { parse } = await import(new URL("sie/playground/js/documents.js", location.origin).href);
        return JSON.parse(JSON.stringify(parse(text, format))); // without fields that are undefined
      },
      [text, format] as const,
    );
  assert.deepEqual(await read("one\r\n\ntwo\nlines"), { documents: [{ text: "one" }, { text: "two\nlines" }], format: "paragraphs", problem: "" });
  assert.deepEqual((await read("one\ntwo\n\n")).documents, [{ text: "one" }, { text: "two" }]);
  const table = await read('id,text\n7,"a, ""b""\nc"\n8,d');
  assert.deepEqual([table.format, table.problem], ["csv", ""]);
  assert.deepEqual(table.documents, [{ id: "7", text: 'a, "b"\nc' }, { id: "8", text: "d" }]);
  assert.deepEqual((await read("title\tbody\nT\ttext")).documents, [{ title: "T", text: "text" }]);
  const lines = await read('{"_id": 3, "contents": "a"}\n{broken\n"b"\n{"other": 1}');
  assert.deepEqual(lines.documents, [{ id: "3", text: "a" }, { text: "b" }]);
  assert.match(lines.problem, /^Line 2 is not JSON/);
  assert.equal((await read('[{"text": "a"}, "b"]')).documents.length, 2);
  assert.match((await read("[1", "json")).problem, /^This is not JSON/);
  assert.match((await read("x;a longer one\ny;text", "csv")).problem, /column 2 was taken/);

  // the first stage
  const found = await page.evaluate(async () => {
    const { bm25, ranked, words } = await import(new URL("sie/playground/js/bm25.js", location.origin).href);
    const scores = bm25("Stars burn", ["rain", "stars and rain and rain", "stars burn"]);
    return { scores, order: ranked(scores), words: words("Ｚürich’s 東京 4x") };
  });
  // by hand: idf of stars ln(1 + 1.5/2.5), of burn ln(1 + 2.5/1.5); lengths 1, 5, 2; mean 8/3
  const part = (idf: number, length: number) => (idf * 2.2) / (1 + 1.2 * (0.25 + (0.75 * length) / (8 / 3)));
  const [stars, burn] = [Math.log(1.6), Math.log(1 + 2.5 / 1.5)];
  const expected = [0, part(stars, 5), part(stars, 2) + part(burn, 2)];
  expected.forEach((score, i) => assert.ok(Math.abs(score - found.scores[i]) < 1e-9, `${found.scores}`));
  assert.deepEqual(found.order, [2, 1, 0]);
  assert.deepEqual(found.words, ["zürich", "s", "東", "京", "4x"]);

  const rows = Array.from({ length: 30 }, (_, i) => `${i},"Row ${i} is about ${i % 7 ? "rain" : "stars"}"`);
  await page.getByLabel("Open a file").setInputFiles({ name: "rows.csv", mimeType: "text/csv", buffer: Buffer.from(["id,text", ...rows].join("\n")) });
  await page.getByText("30 documents, read as CSV or TSV").waitFor();
  await page.getByText("Options").click();
  await page.getByLabel("First stage").selectOption("given");
  await page.getByLabel("Candidates to rerank").fill("20");
  await page.getByLabel("Long documents").selectOption("truncate");
  await page.getByLabel("Query").fill("stars");
  await page.getByLabel("Query").press("Enter");
  await page.getByRole("status").getByText("20 of 30 documents reranked").waitFor();
  assert.deepEqual((await texts(page, ".after .name")).slice(0, 3).sort(), ["0", "14", "7"]);
  assert.equal(await page.locator(".before .number").count(), 0);
  assert.deepEqual(problems, []);
});

test("a loading model is waited for, a request can be cancelled, and large files are not shown", async () => {
  const { page, requests, problems } = await open();
  const posts = () => requests.filter(({ method }) => method === "POST").length;
  let looked = 0;
  await page.route("**/v1/score/**", (route) =>
    posts() === 1
      ? route.fulfill({ status: 503, json: { error: { code: "MODEL_LOADING", message: "still loading" } } })
      : posts() === 2
        ? route.continue()
        : undefined, // never answered
  );
  await page.route("**/v1/models/**", async (route) => {
    const response = await route.fetch();
    const loading = posts() === 1 && looked++ < 1;
    await route.fulfill({ json: { ...(await response.json()), ...(loading && { state: "loading" }) } });
  });
  const buffer = Buffer.from(`<b>bold</b> & "quoted"\n${"rain ".repeat(100_000)}\n`);
  const transfer = await page.evaluateHandle((text) => {
    const files = new DataTransfer();
    files.items.add(new File([text], "large.txt"));
    return files;
  }, buffer.toString());
  await page.dispatchEvent("body", "drop", { dataTransfer: transfer });
  await page.getByText("large.txt, 0.5 MiB").waitFor();
  await page.getByText("2 documents, read as one per line").waitFor();
  assert.equal(await page.getByLabel("Documents", { exact: true }).isVisible(), false);
  await page.getByLabel("Query").fill("bold");
  await rerank(page);
  assert.equal(posts(), 2);
  assert.equal((await texts(page, ".after .name"))[0], '<b>bold</b> & "quoted"');
  await page.getByRole("button", { name: "Rerank" }).click();
  await page.getByRole("button", { name: "Cancel" }).click();
  await page.getByRole("status").getByText("Cancelled.").waitFor();
  assert.deepEqual(problems.filter((text) => !text.includes("503")), []);
});

test("a phone in the dark needs no sideways scrolling", async () => {
  const { page, problems } = await open({ ...PHONE, colorScheme: "dark" });
  await rerank(page);
  await page.locator(".after .head").first().click();
  await page.locator(".after").getByRole("tab", { name: "Token matches" }).click();
  await page.getByRole("row", { name: /^heart/ }).waitFor();
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(wide <= 0, `the page is ${wide} pixels wider than the screen`);
  await accessible(page);
  await page.screenshot({ path: join(OUT, "phone.png") });
  assert.deepEqual(problems, []);
});

test("errors of the server are shown", async () => {
  const { page } = await open({}, "a-key-that-is-not-known");
  await page.getByRole("alert").getByText("this server does not know the API key").waitFor();
  await page.getByLabel("API key").fill(KEY);
  await page.getByLabel("API key").press("Tab");
  await page.getByText("loaded", { exact: true }).waitFor();
  await page.getByRole("button", { name: "Clear" }).click();
  await page.getByRole("button", { name: "Rerank" }).click();
  await page.getByRole("alert").getByText("There are no documents").waitFor();
  await page.getByLabel("Documents", { exact: true }).fill("one\ntwo");
  await page.getByText("Options").click();
  await page.getByLabel(/^Instruction/).fill("find answers");
  await page.getByRole("button", { name: "Rerank" }).click();
  await page.getByRole("alert").getByText("this model takes no instruction").waitFor();
  await page.getByLabel(/^Instruction/).fill("");
  await rerank(page);
  assert.equal(await page.locator("#problem").innerText(), "");
});
