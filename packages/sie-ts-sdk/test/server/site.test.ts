/**
 * Pages of the documentation site in headless Chromium: rules of axe, requests, width, and the search.
 * Variables: PAGE (address of the site), CHROMIUM (the browser), OUT (a folder for screenshots).
 */

import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { type Browser, type BrowserContextOptions, chromium } from "playwright-core";
import { accessible } from "./axe.js";

const { PAGE = "", CHROMIUM, OUT = "." } = process.env;
const FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"];
const SOME = ["", "performance/"];
const MORE = ["offline/", "troubleshooting/", "reference/python/", "http-api/"];
const DESK = { viewport: { width: 1360, height: 900 } };
const PHONE = { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true };
// every width and every scheme with all pages, the other two combinations with some
const LOOKS: Record<string, [string[], BrowserContextOptions]> = {
  "desk, light": [[...SOME, ...MORE], { ...DESK, colorScheme: "light" }],
  "desk, dark": [SOME, { ...DESK, colorScheme: "dark" }],
  "phone, light": [SOME, { ...PHONE, colorScheme: "light" }],
  "phone, dark": [[...SOME, ...MORE], { ...PHONE, colorScheme: "dark" }],
};
let browser: Browser;

before(async () => {
  browser = await chromium.launch({ executablePath: CHROMIUM ?? "chromium", args: FLAGS });
});
after(() => browser?.close());

for (const [look, [paths, options]] of Object.entries(LOOKS)) {
  test(`pages are accessible, as wide as the window and load nothing else: ${look}`, async () => {
    const page = await browser.newPage({ ...options, reducedMotion: "reduce" });
    const problems: string[] = [];
    page.on("request", (request) => request.url().startsWith(PAGE) || problems.push(request.url()));
    page.on("pageerror", (error) => problems.push(String(error)));
    page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
    const scheme = look.endsWith("dark") ? "slate" : "default";
    for (const path of paths) {
      const answer = await page.goto(PAGE + path);
      assert.equal(answer?.status(), 200, path);
      assert.equal(await page.locator("body").getAttribute("data-md-color-scheme"), scheme);
      await page.screenshot({ path: join(OUT, `${path.replaceAll("/", "")} ${look}.png`) });
      assert.equal(await page.evaluate("document.documentElement.scrollWidth - innerWidth"), 0, path);
      await accessible(page);
    }
    assert.deepEqual(problems, []);
    await page.close();
  });
}

test("a search for a message finds the page for troubleshooting among its first two pages", async () => {
  const page = await browser.newPage(DESK);
  for (const message of ["does not know the API key", "is not known here", "texts are longer than"]) {
    await page.goto(PAGE);
    await page.getByRole("textbox", { name: "Search" }).pressSequentially(message); // the theme reads keys
    await page.locator(`.md-search-result__link[href*="troubleshooting/?h="]`).first().waitFor();
    const links = await page.locator(".md-search-result__link").evaluateAll((all) => all.map((link) => (link as HTMLAnchorElement).href));
    const pages = [...new Set(links.map((link) => new URL(link).pathname))];
    assert.ok(pages.slice(0, 2).includes("/troubleshooting/"), `${message}: ${pages.slice(0, 4)}`);
  }
  await page.close();
});
