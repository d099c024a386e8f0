/** Conversion between snake_case on the wire and camelCase in TypeScript. */

import { isMap } from "./failures.js";

/** Convert a key to snake_case. */
export function snake(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/** Convert the keys of one map to snake_case. */
export function snakeKeys(map: object): Record<string, unknown> {
  return Object.fromEntries(Object.entries(map).map(([key, value]) => [snake(key), value]));
}

/** Convert all keys of a decoded answer to camelCase. */
export function camelKeys(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(camelKeys);
  if (!isMap(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [camel(key), camelKeys(part)]));
}

function camel(name: string): string {
  return name.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
}
