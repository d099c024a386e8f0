/** Encoding of arrays, byte for byte as numpy's side writes and reads them. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { decode, Encoder, ExtData } from "@msgpack/msgpack";
import { asArray, CodecError, decodeBody, encodeBody, toArray } from "../../src/codec.js";

/** An array map with *bin* keys, written by hand, because the library does not support such keys. */
function arrayMap(type: string, shape: number[], data: Uint8Array, nd = true): Uint8Array {
  const encoder = new Encoder();
  const bytes = (text: string) => encoder.encode(new TextEncoder().encode(text));
  const pairs: [string, unknown][] = [["nd", nd], ["type", type], ["kind", new Uint8Array()], ["shape", shape], ["data", data]];
  const parts = pairs.flatMap(([key, value]) => [bytes(key), encoder.encode(value)]);
  return Uint8Array.from([0x80 + pairs.length, ...parts.flatMap((part) => [...part])]);
}

const read = (type: string, shape: number[], data: number[]) => toArray(decodeBody(arrayMap(type, shape, Uint8Array.from(data))));

test("every number type is read, in both byte orders", () => {
  assert.deepEqual(read("<f4", [2], [0, 0, 128, 63, 0, 0, 0, 192]), { shape: [2], values: Float32Array.of(1, -2) });
  assert.deepEqual(read(">f4", [1], [63, 128, 0, 0]).values, Float32Array.of(1));
  assert.deepEqual(read("<f8", [1], [0, 0, 0, 0, 0, 0, 240, 63]).values, Float64Array.of(1));
  assert.deepEqual(read("|i1", [2, 1], [255, 1]), { shape: [2, 1], values: Int8Array.of(-1, 1) });
  assert.deepEqual(read("|u1", [2], [255, 1]).values, Uint8Array.of(255, 1));
  assert.deepEqual(read("<i4", [1], [254, 255, 255, 255]).values, Int32Array.of(-2));
  assert.deepEqual(read(">u2", [1], [1, 2]).values, Uint16Array.of(258));
  assert.deepEqual(read("<f4", [0, 3], []), { shape: [0, 3], values: new Float32Array() });
});

test("half floats are widened exactly", () => {
  const bits = [0x3c00, 0xc000, 0x0001, 0x0400, 0x7bff, 0x8000, 0x7c00, 0x3555];
  const data = bits.flatMap((half) => [half & 255, half >> 8]);
  const expected = [1, -2, 2 ** -24, 2 ** -14, 65504, -0, Infinity, 0.333251953125];
  assert.deepEqual([...read("<f2", [8], data).values], expected);
});

test("malformed array maps are rejected", () => {
  assert.throws(() => read("<i8", [1], Array(8).fill(0)), /type "<i8" is not one of/);
  assert.throws(() => read("|O", [1], [0]), CodecError);
  assert.throws(() => read("<f4", [2], [0, 0, 0, 0]), /expected 8 bytes of data for <f4 \[2\], got 4/);
  assert.throws(() => read("<f4", [-1], []), /shape/);
  assert.throws(() => read("<f4", Array(9).fill(1), [0, 0, 0, 0]), /shape/);
  assert.throws(() => toArray(decodeBody(arrayMap("<f4", [1], new Uint8Array(4), false))), /expected an array map/);
  assert.throws(() => toArray({ nd: true, type: "<f4", shape: [1], data: new Uint8Array(4) }), /expected an array map/);
});

test("a trailing byte, a cut body and a foreign key are errors", () => {
  assert.throws(() => decodeBody(Uint8Array.of(0x80, 0xc0)), CodecError);
  assert.throws(() => decodeBody(Uint8Array.of(0x81)), CodecError);
  assert.throws(() => decodeBody(Uint8Array.of(0x81, 0xc3, 0xc3)), /map key/);
});

test("typed arrays are sent as extension 78, bytes as bytes", () => {
  const sent = decode(encodeBody({ a: Float32Array.of(1, 2).subarray(1), b: Uint8Array.of(7), c: undefined })) as Record<string, unknown>;
  assert.ok(sent["a"] instanceof ExtData && sent["a"].type === 78);
  const data = Uint8Array.of(0, 0, 0, 64);
  assert.deepEqual(decode(sent["a"].data as Uint8Array), { nd: true, type: "<f4", kind: "", shape: [1], data });
  assert.deepEqual(sent["b"], Uint8Array.of(7));
  assert.ok(!("c" in sent));
  assert.deepEqual(decode(asArray(Uint8Array.of(7)).data as Uint8Array), {
    nd: true, type: "|u1", kind: "", shape: [1], data: Uint8Array.of(7),
  });
});
