/** The rules of axe (https://github.com/dequelabs/axe-core) on a page in a browser. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import type { Page } from "playwright-core";

const AXE = readFileSync(createRequire(join(process.cwd(), "package.json")).resolve("axe-core/axe.min.js"), "utf8");

/** Check the page with all rules; a failure names each rule and at most three elements that break it. */
export async function accessible(page: Page): Promise<void> {
  // evaluated by the browser's own protocol, which the page's policy does not apply to
  await page.evaluate(AXE);
  const found = await page.evaluate(async () => {
    const { violations } = await (window as unknown as { axe: { run(): Promise<{ violations: any[] }> } }).axe.run();
    return violations.map(({ id, nodes }) => `${id}: ${nodes.map((node: any) => node.target.join(" ")).slice(0, 3)}`);
  });
  assert.deepEqual(found, []);
}
