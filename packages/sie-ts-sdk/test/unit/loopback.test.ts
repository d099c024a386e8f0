/** The real client with real sockets and a misbehaving server on the loopback interface. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type Server } from "node:net";
import { test } from "node:test";
import { encode as pack } from "@msgpack/msgpack";
import { ModelLoadingError, ProtocolError, SIEClient, SIEConnectionError, SIETimeoutError } from "../../src/index.js";

const SCORES = pack({ model: "m", query_id: null, scores: [{ item_id: "item-0", score: 1, rank: 0 }], usage: { input_tokens: 1 } });
const LOADING = JSON.stringify({ error: { code: "MODEL_LOADING", message: "wait" } });
const ITEMS = [{ text: "x" }];

type Behaviour = (write: (bytes: string | Uint8Array) => void, hangUp: () => void) => void;

/** A server that handles the n-th connection with the n-th function; the last one is repeated. */
async function behaving(...behaviours: Behaviour[]): Promise<{ url: string; heads: string[]; server: Server }> {
  const heads: string[] = [];
  const server = createServer((socket) => {
    socket.on("error", () => {});
    socket.once("data", (data) => {
      heads.push(data.toString("latin1").split("\r\n\r\n")[0] ?? "");
      const act = behaviours[Math.min(heads.length, behaviours.length) - 1] as Behaviour;
      act((bytes) => socket.write(bytes), () => socket.destroy());
    });
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  assert.ok(typeof address === "object" && address);
  return { url: `http://127.0.0.1:${address.port}`, heads, server };
}

function http(status: string, body: string | Uint8Array, headers = ""): Behaviour {
  return (write, hangUp) => {
    write(`HTTP/1.1 ${status}\r\ncontent-length: ${body.length}\r\nconnection: close\r\n${headers}\r\n`);
    write(body);
    setTimeout(hangUp, 20);
  };
}

async function trying(behaviours: Behaviour[], use: (client: SIEClient, heads: string[]) => Promise<void>, options = {}): Promise<void> {
  const { url, heads, server } = await behaving(...behaviours);
  const client = new SIEClient(url, { apiKey: "key-1", ...options });
  try {
    await use(client, heads);
  } finally {
    await client.close();
    server.close();
  }
}

test("every attempt has the headers of the caller's trace", () => {
  let attempt = 0;
  const trace = () => ({ traceparent: `00-${"a".repeat(32)}-${String(++attempt).padStart(16, "0")}-01`, tracestate: "", other: "x" });
  const replies = [http("503 -", LOADING, "Retry-After: 0.05\r\n"), http("200 OK", SCORES)];
  return trying(replies, async (client, heads) => {
    await client.score("org/m", { text: "q" }, ITEMS);
    assert.deepEqual(heads.map((head) => /traceparent: .*-(\d{16})-01/i.exec(head)?.[1]), ["0000000000000001", "0000000000000002"]);
    assert.ok(heads.every((head) => !/tracestate|other/i.test(head)));
  }, { trace });
});

test("an error of the caller's trace rejects the call at once", async () => {
  const trace = () => { throw new RangeError("no span"); };
  await trying([http("200 OK", SCORES)], (client, heads) =>
    assert.rejects(client.score("org/m", { text: "q" }, ITEMS), new RangeError("no span")).then(() => assert.equal(heads.length, 0)), { trace });
  const wrong = () => ({ traceparent: "00-\r\nX: y" });
  await trying([http("200 OK", SCORES)], (client) => assert.rejects(client.score("org/m", { text: "q" }, ITEMS), /traceparent has characters/), { trace: wrong });
});

test("headers; a request to a loading model is retried", () =>
  trying([http("503 -", LOADING, "Retry-After: 0.05\r\n"), http("200 OK", SCORES, "X-SIE-Request-ID: r1\r\n")], async (client, heads) => {
    const result = await client.score("org/m", { text: "q" }, ITEMS);
    assert.equal(result.requestId, "r1");
    assert.deepEqual(result.scores, [{ itemId: "item-0", score: 1, rank: 0 }]);
    assert.equal(heads.length, 2);
    assert.match(heads[0] ?? "", /^POST \/v1\/score\/org\/m HTTP\/1\.1/);
    for (const header of [/authorization: bearer key-1/i, /content-type: application\/msgpack/i, /x-sie-sdk-version: 1/i, /x-sie-request-id: sdk-[0-9a-f]{32}\r/i])
      assert.match(heads[0] ?? "", header);
  }));

test("the deadline of one call", () =>
  trying([http("503 -", LOADING, "Retry-After: 1\r\n")], async (client) => {
    await assert.rejects(client.score("m", { text: "q" }, ITEMS, { deadline: 500 }), ModelLoadingError);
  }));

test("a connection dropped before an answer or in the middle of it is retried", async () => {
  await trying([(_, hangUp) => hangUp(), http("200 OK", SCORES)], async (client, heads) => {
    assert.equal((await client.score("m", { text: "q" }, ITEMS)).model, "m");
    assert.equal(heads.length, 2);
  });
  const cut: Behaviour = (write, hangUp) => {
    write("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc");
    setTimeout(hangUp, 50);
  };
  await trying([cut], async (client, heads) => {
    await assert.rejects(client.score("m", { text: "q" }, ITEMS), /the answer broke off.*3 tries/);
    assert.equal(heads.length, 3);
  });
});

test("an answer that is no HTTP is reported soon by a client that has had one", async () => {
  const headers = "X-A: b\r\n".repeat(20_000);
  for (const malformed of ["\x15\x03\x01\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nabc", `HTTP/1.1 200 OK\r\n${headers}\r\n`])
    await trying([http("200 OK", '{"models": []}'), (write) => write(malformed)], async (client, heads) => {
      await client.listModels();
      await assert.rejects(client.listModels(), /the answer broke off.*3 tries/);
      assert.equal(heads.length, 4);
    }, { deadline: 20_000 });
});

test("silence before or in the middle of an answer is a timeout and not retried; slowness is not a timeout", async () => {
  const halfway: Behaviour = (write) => write("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc");
  for (const silent of [() => {}, halfway])
    await trying([silent], async (client, heads) => {
      await assert.rejects(client.score("m", { text: "q" }, ITEMS), SIETimeoutError);
      assert.equal(heads.length, 1);
    }, { timeout: 300 });
  const quarter = Math.ceil(SCORES.length / 4);
  const slow: Behaviour = (write) => {
    setTimeout(() => write(`HTTP/1.1 200 OK\r\ncontent-length: ${SCORES.length}\r\n\r\n`), 400);
    for (const part of [0, 1, 2, 3])
      setTimeout(() => write(SCORES.subarray(part * quarter, (part + 1) * quarter)), 800 + 400 * part);
  };
  await trying([slow], async (client) => assert.ok(await client.score("m", { text: "q" }, ITEMS)), { timeout: 700 });
});

test("a deadline ends a dripping head, a dripping body, a slow upload and silence", async () => {
  const drip = (bytes: string): Behaviour => (write, hangUp) => {
    let at = 0;
    const timer = setInterval(() => (at < 40 ? write(bytes.slice(at, ++at)) : (clearInterval(timer), hangUp())), 100);
  };
  const body: Behaviour = (write, hangUp) => {
    write("HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n");
    drip("x".repeat(5000))(write, hangUp);
  };
  for (const behaviour of [drip(`HTTP/1.1 200 OK\r\n${"X-A: b\r\n".repeat(50)}`), body, () => {}])
    await trying([behaviour], async (client) => {
      const started = performance.now();
      await assert.rejects(client.score("m", { text: "q" }, ITEMS, { deadline: 600 }), SIETimeoutError);
      assert.ok(performance.now() - started < 1600);
    });
  const unread = createServer((socket) => socket.on("error", () => {}).pause()).listen(0, "127.0.0.1");
  await once(unread, "listening");
  const address = unread.address() as { port: number };
  const started = performance.now();
  const client = new SIEClient(`http://127.0.0.1:${address.port}`);
  await assert.rejects(client.score("m", { text: "q" }, [{ text: "x".repeat(3e7) }], { deadline: 800 }), SIETimeoutError);
  assert.ok(performance.now() - started < 1800);
  unread.close();
});

test("an answer to another request, and one without end, are refused", async () => {
  await trying([http("200 OK", SCORES, `X-SIE-Request-ID: sdk-${"a".repeat(32)}\r\n`)], async (client, heads) => {
    await assert.rejects(client.score("m", { text: "q" }, ITEMS), /belongs to request sdk-a{32}, not sdk-/);
    assert.equal(heads.length, 1);
  });
  const endless: Behaviour = (write) => {
    write("HTTP/1.1 400 No\r\nx-sie-error-code: INVALID_INPUT\r\ntransfer-encoding: chunked\r\n\r\n");
    for (let piece = 0; piece < 40; piece++) write(`10000\r\n${"x".repeat(65536)}\r\n`);
  };
  await trying([endless], async (client) => {
    await assert.rejects(client.score("m", { text: "q" }, ITEMS), { code: "INVALID_INPUT" });
  });
});

test("no server listens", async () => {
  const { url, server } = await behaving(() => {});
  server.close();
  await once(server, "close");
  const client = new SIEClient(url);
  await assert.rejects(client.listModels(), (error: Error) => {
    assert.ok(error instanceof SIEConnectionError && error.retryable);
    assert.match(error.message, /cannot connect to .*ECONNREFUSED.*baseUrl is right \[gave up after 3 tries/);
    return true;
  });
});

test("redirects are not followed, because they would send texts and key to another server", () =>
  trying([http("307 -", "", "Location: http://127.0.0.1:9/\r\n")], async (client, heads) => {
    await assert.rejects(client.listModels(), (error: Error) => error instanceof ProtocolError && /status 307 to http/.test(error.message));
    assert.equal(heads.length, 1);
  }));

test("a signal ends a call immediately: before an attempt, during it and during a wait", async () => {
  const reason = new Error("enough");
  for (const behaviour of [() => {}, http("503 -", LOADING, "Retry-After: 60\r\n")])
    await trying([behaviour], async (client) => {
      const controller = new AbortController();
      setTimeout(() => controller.abort(reason), 150);
      const started = performance.now();
      await assert.rejects(client.score("m", { text: "q" }, ITEMS, { signal: controller.signal }), (error) => error === reason);
      assert.ok(performance.now() - started < 5000);
      await assert.rejects(client.listModels({ signal: controller.signal }), (error) => error === reason);
    });
});

test("many calls at once end with one signal or with the client, and Node has nothing to warn of", async () => {
  const warnings: Error[] = [];
  const note = (warning: Error) => warnings.push(warning);
  process.on("warning", note);
  try {
    await trying([() => {}], async (client) => {
      const controller = new AbortController();
      const ended = (signal?: AbortSignal) => Promise.allSettled(Array.from({ length: 30 }, () => client.listModels(signal ? { signal } : {})));
      const [signalled, closed] = [ended(controller.signal), ended()];
      setTimeout(() => controller.abort(new Error("enough")), 50);
      for (const one of await signalled) assert.match(String((one as PromiseRejectedResult).reason), /enough/);
      await client.close();
      for (const one of await closed) assert.match(String((one as PromiseRejectedResult).reason), /the client is closed/);
    });
  } finally {
    process.off("warning", note);
  }
  assert.deepEqual(warnings, []);
});

test("close ends running and later calls", () =>
  trying([() => {}], async (client) => {
    const pending = client.listModels();
    setTimeout(() => client.close(), 50);
    await assert.rejects(pending, /the client is closed/);
    await assert.rejects(client.listModels(), /the client is closed/);
  }));

test("a server of a distant version is reported once", async () => {
  const said: string[] = [];
  const far = http("200 OK", '{"models": []}', "X-SIE-Server-Version: 7.0.0\r\n");
  await trying([far], async (client) => {
    assert.deepEqual([await client.listModels(), await client.listModels()], [[], []]);
    assert.deepEqual(said, ["version 1.0.0 is connected to a server of version 7.0.0; some features may differ"]);
  }, { warn: (message: string) => said.push(message) });
});

for (const prefix of ["/sie", "/a/b/", "/sie//"])
  test(`a base URL with the path ${prefix}, below which a proxy serves`, async () => {
    const { url, heads, server } = await behaving(http("200 OK", SCORES));
    const client = new SIEClient(url + prefix);
    try {
      await client.score("org/m", { text: "q" }, ITEMS);
      assert.equal(heads[0]?.split("\r\n")[0], `POST ${prefix.replace(/\/+$/, "")}/v1/score/org/m HTTP/1.1`);
    } finally {
      await client.close();
      server.close();
    }
  });
