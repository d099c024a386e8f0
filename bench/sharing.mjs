/**
 * The TypeScript half of bench.sharing: clients in bursts, worker threads and child processes.
 *
 * `node sharing.mjs TASK.json` prints `{way: {calls, wrong, failed}}`. Workers and children run this file too, with their
 * part of the task.
 */

import { fork } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { SIEClient, SIEError } from "../packages/sie-ts-sdk/dist/esm/index.js";

const AT_ONCE = 20;
const PARTS = 5; // worker threads, child processes
const SELF = fileURLToPath(import.meta.url);

/** Call `calls` times, in bursts over the given clients; each burst begins in a turn of the event loop of its own. */
async function bursts(task, clients, calls) {
  const count = { calls: 0, wrong: 0, failed: 0 };
  for (let left = calls; left > 0; left -= AT_ONCE) {
    await new Promise((resolve) => setImmediate(resolve));
    const size = Math.min(AT_ONCE, left);
    await Promise.all(Array.from({ length: size }, (_, k) => one(task, clients[k % clients.length], count)));
  }
  return count;
}

async function one(task, client, count) {
  const number = Math.floor(Math.random() * task.queries.length);
  count.calls++;
  try {
    const { scores } = await client.score(task.model, { text: task.queries[number] }, task.items, { options: task.options });
    const found = new Map(scores.map(({ itemId, score }) => [itemId, score]));
    const expected = task.logits[number];
    if (!expected.every((logit, k) => Math.abs(found.get(`item-${k}`) - logit) < task.same)) count.wrong++;
  } catch (error) {
    if (!(error instanceof SIEError)) throw error;
    count.failed++;
    console.error(`  ${error.message}`);
  }
}

/** Run a part of the task in every worker, and return the sum of their counts. `start` returns an emitter of "message". */
async function inParts(task, calls, start) {
  const answers = Array.from({ length: PARTS }, () => new Promise((resolve, reject) => {
    const worker = start({ ...task, calls: Math.ceil(calls / PARTS) });
    worker.once("message", resolve);
    worker.once("error", reject);
    worker.once("exit", (code) => reject(new Error(`a worker ended with ${code} and gave no answer`)));
  }));
  const sum = { calls: 0, wrong: 0, failed: 0 };
  for (const count of await Promise.all(answers)) for (const name of Object.keys(sum)) sum[name] += count[name];
  return sum;
}

function childProcess(task) {
  const child = fork(SELF, ["part"]);
  child.send(task);
  return child;
}

const client = (task) => new SIEClient(task.url);

async function main() {
  const task = JSON.parse(readFileSync(process.argv[2], "utf8"));
  const calls = Math.ceil(task.calls / 4);
  const shared = client(task);
  const ways = {
    "one client, bursts": await bursts(task, [shared], calls),
    "five clients, bursts": await bursts(task, Array.from({ length: 5 }, () => client(task)), calls),
    "worker threads": await inParts(task, calls, (part) => new Worker(SELF, { workerData: part })),
    "child processes": await inParts(task, calls, childProcess),
  };
  console.log(JSON.stringify(ways));
}

if (!isMainThread) parentPort.postMessage(await bursts(workerData, [client(workerData)], workerData.calls));
else if (process.argv[2] === "part")
  process.once("message", async (task) => {
    process.send(await bursts(task, [client(task)], task.calls));
    process.disconnect();
  });
else await main();
