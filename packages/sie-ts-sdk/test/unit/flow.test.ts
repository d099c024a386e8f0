/** The flow without I/O: requests, waits and errors. No test sleeps. */

import assert from "node:assert/strict";
import { test } from "node:test";
import * as sie from "../../src/index.js";
import { exchange, type Outcome, type Reply, type Request } from "../../src/flow.js";

const REQUEST: Request = { method: "POST", path: "/v1/score/org/name", accept: "application/msgpack" };
const OK = reply(200, "fine");
const EPOCH = Date.parse("Sun, 15 Jun 2025 15:06:40 GMT");

function reply(status: number, body: string, headers: Record<string, string> = {}): Reply {
  const all = new Map(Object.entries({ "x-sie-request-id": "req-1", "x-sie-server-version": "1.0.0", ...headers }));
  return { kind: "reply", status, headers: all, body: new TextEncoder().encode(body) };
}

/** An error response (docs/http-api.md#errors). */
function refusal(status: number, code?: string, retryAfter?: string, more: object = {}): Reply {
  const error = { code, message: `about ${code}`, ...more };
  const body = JSON.stringify({ detail: error, error, code });
  return retryAfter === undefined ? reply(status, body) : reply(status, body, { "retry-after": retryAfter });
}

interface Run {
  timeouts: number[];
  sleeps: number[];
  result?: Reply;
  error: sie.SIEError;
}

interface Given {
  deadline?: number;
  took?: number;
  oversleep?: number;
  chance?: number;
  answered?: boolean;
  giveUp?: number;
}

/** Run a flow with the given answers; the last one is repeated. Times in ms. */
function run(outcomes: Outcome[], given: Given = {}): Run {
  const { deadline = 900_000, took = 0, oversleep = 0, chance = 0.5, answered = false, giveUp = Infinity } = given;
  let now = 1_000_000;
  const clock = { monotonic: () => now, wall: () => EPOCH + now - 1_000_000, random: () => chance, requestId: () => "sdk-1" };
  const flow = exchange(REQUEST, { timeout: 150_000, deadline, url: "http://host:8080", answered, giveUp }, clock);
  const done: Partial<Run> & Pick<Run, "timeouts" | "sleeps"> = { timeouts: [], sleeps: [] };
  let outcome: Outcome;
  try {
    for (;;) {
      const step = flow.next(outcome);
      if (step.done) return { ...done, result: step.value } as Run;
      if (step.value.kind === "sleep") {
        done.sleeps.push(step.value.ms);
        now += step.value.ms + oversleep;
        outcome = undefined;
      } else {
        done.timeouts.push(step.value.timeout);
        now += took;
        outcome = outcomes[Math.min(done.timeouts.length, outcomes.length) - 1];
      }
    }
  } catch (error) {
    return { ...done, error: error as sie.SIEError } as Run;
  }
}

test("an immediate answer is one send with the full timeout", () => {
  assert.deepEqual(run([OK]), { timeouts: [150_000], sleeps: [], result: OK });
});

for (const [status, code, kind] of [
  [503, "MODEL_LOADING", sie.ModelLoadingError],
  [503, "QUEUE_FULL", sie.QueueFullError],
  [429, "RATE_LIMITED", sie.RateLimitedError],
] as const) {
  test(`${code} is retried until the answer or the deadline`, () => {
    const waited = run([...Array<Outcome>(20).fill(refusal(status, code, "7")), OK]);
    assert.equal(waited.result, OK);
    assert.deepEqual(waited.sleeps, Array(20).fill(7000));
    const { error, sleeps } = run([refusal(status, code, "100")]);
    assert.equal(error.constructor, kind);
    assert.deepEqual(sleeps, Array(8).fill(100_000)); // a ninth would end at 900 s
    assert.ok(error.retryable);
    assert.equal(error.message, `about ${code} [gave up after 9 tries in 800.0 s]`);
    assert.ok(error.stack?.includes("gave up after 9 tries"));
  });
}

test("the deadline holds: before a wait, after a wait that took too long, and within an attempt", () => {
  const loading = refusal(503, "MODEL_LOADING", "5");
  assert.deepEqual(run([loading], { deadline: 4000 }).sleeps, []);
  assert.equal(run([loading], { deadline: 6000, oversleep: 10_000 }).timeouts.length, 1);
  assert.deepEqual(run([loading, loading, OK], { deadline: 20_000, took: 4000 }).timeouts, [20_000, 11_000, 2000]);
});

test("RESOURCE_EXHAUSTED is retried three times, regardless of other errors in between", () => {
  const exhausted = refusal(503, "RESOURCE_EXHAUSTED", "1");
  const { error, sleeps } = run([exhausted]);
  assert.ok(error instanceof sie.ResourceExhaustedError && error.message.includes("4 tries"));
  assert.deepEqual(sleeps, [1000, 1000, 1000]);
  assert.equal(run([exhausted, exhausted, exhausted, OK]).result, OK);
  const loading = refusal(503, "MODEL_LOADING", "5");
  assert.equal(run([exhausted, exhausted, loading, exhausted, exhausted, OK]).timeouts.length, 5);
});

test("a connection is tried three times, and an answer resets the count", () => {
  for (const kind of ["connect", "dropped"] as const) {
    const { error, timeouts } = run([{ kind, detail: "why" }]);
    assert.equal(error.constructor, sie.SIEConnectionError);
    assert.equal(timeouts.length, 3);
  }
  const refused: Outcome = { kind: "connect", detail: "refused" };
  assert.equal(run([refused, refused, refusal(503, "QUEUE_FULL", "1"), refused, refused, OK]).result, OK);
  const late = run([{ kind: "timeout", detail: "" }]);
  assert.ok(late.error instanceof sie.SIETimeoutError && late.timeouts.length === 1);
});

test("a server that has answered is waited for until the deadline; a proxy's 5xx counts as dropped", () => {
  const html: Reply = { kind: "reply", status: 502, headers: new Map([["retry-after", "9"]]), body: new TextEncoder().encode("<p>") };
  const dropped: Outcome = { kind: "dropped", detail: "reset" };
  for (const down of [dropped, { kind: "connect", detail: "refused" } as Outcome, html]) {
    assert.equal(run([...Array<Outcome>(30).fill(down), OK], { answered: true }).result, OK);
    assert.equal(run([refusal(503, "QUEUE_FULL", "1"), ...Array<Outcome>(9).fill(down), OK]).result, OK);
    assert.equal(run([down]).timeouts.length, 3);
  }
  assert.deepEqual(run([html, html, OK], { answered: true }).sleeps, [9000, 9000]);
  const code = new TextEncoder().encode('{"code": "INFERENCE_ERROR"}'); // a proxy that strips headers
  const failed = run([{ kind: "reply", status: 500, headers: new Map(), body: code }], { answered: true });
  assert.ok(failed.error instanceof sie.InferenceError && failed.timeouts.length === 1);
});

test("an answer that breaks off is tried three times, a wrong one once", () => {
  const { error, timeouts } = run([{ kind: "broken", detail: "half" }], { answered: true });
  assert.ok(error instanceof sie.SIEConnectionError && timeouts.length === 3);
  const wrong = run([{ kind: "wrong", detail: "the answer belongs to request x" }], { answered: true });
  assert.ok(wrong.error instanceof sie.ProtocolError && wrong.timeouts.length === 1);
});

test("no attempt starts after the caller's own limit", () => {
  assert.deepEqual(run([refusal(503, "QUEUE_FULL", "2")], { giveUp: 5000 }).sleeps, [2000, 2000]);
  assert.equal(run([refusal(503, "QUEUE_FULL", "1"), OK], { giveUp: 2000, took: 900 }).result, OK);
});

for (const [answer, kind] of [
  [refusal(400, "INVALID_INPUT"), sie.RequestError],
  [refusal(400, "INPUT_TOO_LONG"), sie.InputTooLongError],
  [refusal(413), sie.InputTooLongError],
  [refusal(401, "UNAUTHORIZED"), sie.AuthError],
  [refusal(403, "FORBIDDEN"), sie.AuthError],
  [refusal(404, "MODEL_NOT_FOUND"), sie.ModelNotFoundError],
  [refusal(404), sie.RequestError],
  [refusal(500, "INFERENCE_ERROR"), sie.InferenceError],
  [refusal(502, "MODEL_LOAD_FAILED", "1"), sie.ModelLoadFailedError],
  [refusal(502, undefined, "1"), sie.ServerError],
  [refusal(503, "LORA_LOADING", "1"), sie.ServerError],
  [refusal(503, undefined, "1"), sie.ServerError],
  [refusal(500, "MODEL_LOADING", "1"), sie.ServerError],
  [refusal(204), sie.ProtocolError],
  [refusal(307), sie.ProtocolError],
] as const) {
  test(`${answer.status} ${new TextDecoder().decode(answer.body).slice(-20)} is thrown immediately as ${kind.name}`, () => {
    const { error, sleeps } = run([answer]);
    assert.equal(error.constructor, kind);
    assert.equal(error.name, kind.name);
    assert.deepEqual([error.status, error.requestId, error.retryable], [answer.status, "req-1", false]);
    assert.deepEqual(sleeps, []);
  });
}

test("Retry-After is honoured verbatim, as seconds or as a date", () => {
  for (const [header, ms] of [
    ["5", 5000],
    ["0.25", 250],
    ["600", 600_000],
    ["Sun, 15 Jun 2025 15:07:10 GMT", 30_000],
    ["Sun, 15 Jun 2025 17:07:10 +0200", 30_000],
  ] as const)
    assert.deepEqual(run([refusal(503, "QUEUE_FULL", header), OK], { chance: 0.9 }).sleeps, [ms], header);
});

test("without a usable Retry-After, jittered exponential backoff decides", () => {
  for (const header of [undefined, "soon", "-3", "NaN", "Infinity", "0", "", "1e9", "0x10", "1_0", "+5", "9".repeat(400), "Sun, 15 Jun 2025 15:06:00 GMT",
    "Mon, 01 Jan 2024 00:00:00 +99999999999999999999", `Mon, 01 Jan ${"9".repeat(30)} 00:00:00 GMT`])
    assert.deepEqual(run([refusal(503, "QUEUE_FULL", header), OK]).sleeps, [187.5], header);
  const { sleeps } = run([...Array<Outcome>(7).fill(refusal(503, "QUEUE_FULL")), OK], { chance: 0 });
  assert.deepEqual(sleeps, [125, 250, 500, 1000, 2000, 4000, 4000]);
});

test("a load that failed carries its details", () => {
  const more = { error_class: "OSError", permanent: false, attempts: 2 };
  const { error } = run([refusal(502, "MODEL_LOAD_FAILED", undefined, more)]);
  assert.ok(error instanceof sie.ModelLoadFailedError);
  assert.deepEqual([error.errorClass, error.permanent, error.attempts, error.retryable], ["OSError", false, 2, true]);
  assert.equal(String(error), "ModelLoadFailedError: about MODEL_LOAD_FAILED (502, MODEL_LOAD_FAILED, request req-1)");
});

test("answers of other programs are shown", () => {
  const { error } = run([reply(404, "<html>\n bad   gateway</html>")]);
  assert.equal(error.message, "POST http://host:8080/v1/score/org/name was answered with status 404: <html> bad gateway</html>");
  assert.match(run([reply(302, "", { location: "https://x" })]).error.message, /status 302 to https:\/\/x: no body/);
  assert.equal(run([reply(400, '{"detail": "words"}')]).error.message, "words");
});
