/** Rank the requests of a JSON file and print the results, for comparison with other clients. */

import { readFileSync } from "node:fs";
import { type Item, type ServerOptions, SIEClient } from "../../src/index.js";

interface Asked {
  model: string;
  query: Item;
  items: Item[];
  options: ServerOptions;
}

const requests: Asked[] = JSON.parse(readFileSync(process.argv[2] as string, "utf8"));
const client = new SIEClient();
const results = [];
for (const { model, query, items, options } of requests)
  results.push((await client.score(model, query, items, { options })).scores);
console.log(JSON.stringify(results));
await client.close();
