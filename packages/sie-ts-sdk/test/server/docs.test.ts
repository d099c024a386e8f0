/**
 * The page /docs in headless Chromium, which must render without another host and answer when Execute is pressed.
 * Variables: PAGE (address of the page), SIE_API_KEY and CHROMIUM (the browser).
 */

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { type Browser, chromium, type Locator, type Page } from "playwright-core";

const { PAGE = "", SIE_API_KEY: KEY = "", CHROMIUM } = process.env;
const FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"];
let browser: Browser;

before(async () => {
  browser = await chromium.launch({ executablePath: CHROMIUM ?? "chromium", args: FLAGS });
});
after(() => browser?.close());

/** Open the page; its requests and problems are added to the two lists. */
async function open(address: string): Promise<{ page: Page; requests: string[]; problems: string[] }> {
  const page = await browser.newPage();
  const requests: string[] = [];
  const problems: string[] = [];
  page.on("request", (request) => requests.push(request.url()));
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("console", (message) => message.text().includes("Content Security Policy") && problems.push(message.text()));
  await page.goto(address);
  await page.locator(".opblock").first().waitFor();
  return { page, requests, problems };
}

/** Press Execute on a route, and return the status and the body that the page shows. */
async function execute(page: Page, path: string): Promise<{ status: string; body: string }> {
  const route: Locator = page.locator(".opblock").filter({ has: page.getByText(path, { exact: true }) }).first();
  await route.locator(".opblock-summary-control").click();
  await route.getByRole("button", { name: "Try it out" }).click();
  await route.getByRole("button", { name: "Execute" }).click();
  const answer = route.locator(".live-responses-table .response");
  await answer.waitFor();
  return { status: await answer.locator(".response-col_status").innerText(), body: await answer.innerText() };
}

test("the page renders, takes a key and shows answers", async () => {
  const { page, requests, problems } = await open(PAGE);
  const paths = await page.locator(".opblock-summary-path").evaluateAll((found) => found.map((each) => each.textContent));
  assert.ok(paths.includes("/v1/score/{model}") && paths.length > 20, paths.join(" "));
  assert.match((await execute(page, "/v1/inspect/{model}")).status, /^401/);
  await page.getByRole("button", { name: "Authorize" }).click();
  await page.locator(".auth-container input").fill(KEY);
  await page.locator(".auth-btn-wrapper .authorize").click();
  await page.locator(".auth-btn-wrapper .btn-done").click();
  const scored = await execute(page, "/v1/score/{model}");
  assert.match(scored.status, /^200/);
  assert.match(scored.body, /"score_type"/); // JSON, which the page can show
  const here = `${new URL(PAGE).origin}/`;
  assert.deepEqual(requests.filter((url) => !url.startsWith(here) && !/^(data|blob):/.test(url)), []);
  assert.deepEqual(problems, []);
});
