/**
 * Encoding of bodies as msgpack, and of typed arrays as msgpack maps.
 *
 * In an answer, an array is `{b"nd": true, b"type": "<f4", b"kind": b"", b"shape": [n, …], b"data": bytes}`; the keys
 * are msgpack *bin*, so no map with text keys can be mistaken for an array. Objects cannot have such keys, so decoded ones
 * get the prefix `BIN`. For the same reason arrays are sent as extension 78, which contains the map with text keys.
 */

import { decode, encode, ExtData, ExtensionCodec } from "@msgpack/msgpack";
import { isMap } from "./failures.js";
import type { Vector } from "./types.js";

const EXT_ARRAY = 78;
const MAX_DIMS = 8;
const BIN = "\u0000bin:";
const HOST_ORDER = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1 ? "<" : ">";

/** The type codes of numpy for the kinds of typed arrays. */
const TYPES = {
  f4: Float32Array,
  f8: Float64Array,
  i1: Int8Array,
  i2: Int16Array,
  i4: Int32Array,
  u1: Uint8Array,
  u2: Uint16Array,
  u4: Uint32Array,
} as const;

/** A value that cannot be sent, or bytes that cannot be read. */
export class CodecError extends Error {
  override readonly name = "CodecError";
}

/** An array of any number of dimensions, in C order. */
export interface NdArray {
  shape: number[];
  values: Vector;
}

const extensions = new ExtensionCodec();
extensions.register({
  type: EXT_ARRAY,
  // a Uint8Array is sent as bytes; `asArray` wraps one that is a vector
  encode: (value) => (isVector(value) && !(value instanceof Uint8Array) ? packArray(value) : null),
  decode: () => {
    throw new CodecError(`msgpack extension type ${EXT_ARRAY} is not part of an answer`);
  },
});

/** Encode a value as msgpack, without keys whose value is undefined. Throws CodecError. */
export function encodeBody(value: unknown): Uint8Array<ArrayBuffer> {
  try {
    return encode(value, { extensionCodec: extensions, ignoreUndefined: true });
  } catch (error) {
    throw new CodecError(messageOf(error));
  }
}

/** Decode msgpack; a trailing byte is an error. Throws CodecError. */
export function decodeBody(data: Uint8Array): unknown {
  try {
    return decode(data, { extensionCodec: extensions, mapKeyConverter: keyOf });
  } catch (error) {
    throw new CodecError(messageOf(error));
  }
}

/** Wrap a vector for sending; only needed for Uint8Array, which would otherwise be sent as bytes. */
export function asArray(vector: Vector): ExtData {
  return new ExtData(EXT_ARRAY, packArray(vector));
}

/** Whether a value is a typed array of numbers. */
export function isVector(value: unknown): value is Vector {
  return Object.values(TYPES).some((type) => value instanceof type);
}

/** Convert a decoded array map to a typed array with its own memory, half floats to Float32Array. Throws CodecError. */
export function toArray(value: unknown): NdArray {
  if (!isMap(value) || value[`${BIN}nd`] !== true) throw new CodecError("expected an array map");
  const { [`${BIN}type`]: code, [`${BIN}kind`]: kind, [`${BIN}shape`]: shape, [`${BIN}data`]: data } = value;
  if (kind !== undefined && kind !== "" && !(kind instanceof Uint8Array && kind.length === 0))
    throw new CodecError("array map: only plain arrays are supported, `kind` must be empty");
  if (!Array.isArray(shape) || shape.length > MAX_DIMS || !shape.every((size) => Number.isInteger(size) && size >= 0))
    throw new CodecError(`array map: shape ${JSON.stringify(shape)} is not a list of at most ${MAX_DIMS} sizes`);
  if (!(data instanceof Uint8Array)) throw new CodecError("array map: data is not bytes");
  const [, order, letters] = /^([<>|])([a-z]\d)$/.exec(String(code)) ?? [];
  if (letters === undefined || !(letters === "f2" || letters in TYPES))
    throw new CodecError(`array map: type ${JSON.stringify(code)} is not one of f2, ${Object.keys(TYPES).join(", ")}`);
  const width = Number(letters[1]);
  const expected = shape.reduce((product: number, size: number) => product * size, width);
  if (data.length !== expected)
    throw new CodecError(`array map: expected ${expected} bytes of data for ${code} [${shape}], got ${data.length}`);
  const bytes = inHostOrder(data, width, order);
  return { shape, values: letters === "f2" ? widen(new Uint16Array(bytes)) : new TYPES[letters as keyof typeof TYPES](bytes) };
}

function keyOf(key: unknown): string | number {
  if (typeof key === "string" || typeof key === "number") return key;
  if (key instanceof Uint8Array) return BIN + new TextDecoder().decode(key);
  throw new CodecError(`a map key is a ${typeof key}`);
}

function packArray(vector: Vector): Uint8Array {
  const letters = Object.entries(TYPES).find(([, type]) => vector instanceof type)?.[0] ?? "";
  const type = (vector.BYTES_PER_ELEMENT === 1 ? "|" : HOST_ORDER) + letters;
  const data = new Uint8Array(vector.buffer, vector.byteOffset, vector.byteLength);
  return encode({ nd: true, type, kind: "", shape: [vector.length], data });
}

/** Return an aligned copy in the byte order of this machine. */
function inHostOrder(data: Uint8Array, width: number, order: string | undefined): ArrayBuffer {
  const bytes = new Uint8Array(data);
  if (width > 1 && order !== HOST_ORDER)
    for (let at = 0; at < bytes.length; at += width) bytes.subarray(at, at + width).reverse();
  return bytes.buffer;
}

/** Convert the bits of IEEE 754 half floats to float32, exactly. */
function widen(halves: Uint16Array): Float32Array {
  return Float32Array.from(halves, (bits) => {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 0x1f;
    const fraction = bits & 0x3ff;
    if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
    return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1024 + fraction) * 2 ** (exponent - 25);
  });
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
