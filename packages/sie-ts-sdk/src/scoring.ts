/**
 * Late interaction, for documents whose token vectors are already known.
 *
 * maxsim(q, d) = Σ over query tokens of the largest dot product with any document token. Vectors are not normalised:
 * normalise them first if the model does not. Packed bits (binary, ubinary) must be unpacked first.
 */

import type { Vector } from "./types.js";

/** One vector per token: [tokens][width]. */
export type TokenVectors = readonly (Vector | readonly number[])[];

/** Score one document. Throws RangeError if query or document has no tokens, or if the widths differ. */
export function maxsim(query: TokenVectors, document: TokenVectors): number {
  return maxsimBatch(query, [document])[0] as number;
}

/** Score many documents against one query, [documents]. Throws RangeError as maxsim does, naming the document. */
export function maxsimBatch(query: TokenVectors, documents: readonly TokenVectors[]): number[] {
  const width = widthOf(query, "query");
  return documents.map((document, index) => {
    const found = widthOf(document, `document ${index}`);
    if (found !== width) throw new RangeError(`query vectors are ${width} wide, those of document ${index} ${found}`);
    return query.reduce((sum, token) => sum + largestDot(token, document), 0);
  });
}

function largestDot(token: Vector | readonly number[], document: TokenVectors): number {
  let largest = -Infinity;
  for (const other of document) {
    let dot = 0;
    for (let i = 0; i < token.length; i++) dot += (token[i] as number) * (other[i] as number);
    if (dot > largest || Number.isNaN(dot)) largest = dot; // NaN is kept, so that it is visible in the result
  }
  return largest;
}

function widthOf(vectors: TokenVectors, name: string): number {
  const width = vectors[0]?.length ?? 0;
  if (width === 0 || vectors.some((vector) => vector.length !== width))
    throw new RangeError(`${name} is not [tokens][width] with at least one token and one width`);
  return width;
}
