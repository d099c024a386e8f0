/** Rank the requests of a JSON file and print the results: for comparison with other clients. */

import { readFileSync } from "node:fs";
import { type Item, SIEClient } from "../../src/index.js";

const requests: { model: string; query: Item; items: Item[] }[] = JSON.parse(readFileSync(process.argv[2] as string, "utf8"));
const client = new SIEClient();
const results = [];
for (const { model, query, items } of requests) results.push((await client.score(model, query, items)).scores);
console.log(JSON.stringify(results));
await client.close();
