/** BM25 over the documents of the page: the first stage that a reranker improves. Without stemming. */

const K1 = 1.2;
const B = 0.75;
// scripts without spaces between words: every character counts as a word
const ALONE = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]/gu;

/** @param {string} text @returns {string[]} */
export function words(text) {
  return text.normalize("NFKC").toLowerCase().replace(ALONE, " $& ").match(/[\p{L}\p{M}\p{N}]+/gu) ?? [];
}

/**
 * The score of every text.
 * @param {string} query
 * @param {string[]} texts
 * @returns {number[]}
 */
export function bm25(query, texts) {
  const terms = [...new Set(words(query))];
  const counts = texts.map((text) => {
    const found = words(text);
    const of = new Map(terms.map((term) => [term, 0]));
    for (const word of found) if (of.has(word)) of.set(word, (of.get(word) ?? 0) + 1);
    return { of, length: found.length };
  });
  const mean = counts.reduce((sum, { length }) => sum + length, 0) / Math.max(1, texts.length) || 1;
  const weights = terms.map((term) => {
    const having = counts.filter(({ of }) => of.get(term)).length;
    return Math.log(1 + (texts.length - having + 0.5) / (having + 0.5));
  });
  return counts.map(({ of, length }) =>
    terms.reduce((sum, term, i) => {
      const count = of.get(term) ?? 0;
      return sum + ((weights[i] ?? 0) * count * (K1 + 1)) / (count + K1 * (1 - B + (B * length) / mean));
    }, 0),
  );
}

/**
 * Indices in the order of descending scores; ties keep their order.
 * @param {number[]} scores
 */
export function ranked(scores) {
  return scores.map((_, i) => i).sort((a, b) => (scores[b] ?? 0) - (scores[a] ?? 0) || a - b);
}
