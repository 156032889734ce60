// Weights as bytes: 255 times the square root of each, as helpers/views/attention.py packs them.

const MOST_LINES = 500; // faint lines, behind those of the token under the pointer
const LEAST_BYTE = 40; // weaker pairs get no faint line

/** @param {number} byte */
export function weightOf(byte) {
  return (byte / 255) ** 2;
}

/** @param {number} weight */
export function written(weight) {
  if (weight < 0.0005) return "0";
  return weight < 0.01 ? weight.toFixed(3) : weight.toFixed(2);
}

/**
 * @param {Uint8Array | DataView} bytes deflated
 * @returns {Promise<Uint8Array>}
 */
export async function inflate(bytes) {
  const part = /** @type {BlobPart} */ (bytes);
  const stream = new Blob([part]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/**
 * A packed layer (for each query only the keys it may see, without the mean over heads) as
 * [plane, query, key]. The mean is computed here.
 *
 * @param {Uint8Array} packed
 * @param {{ queries: number[], tokens: string[], planes: string[] }} view
 */
export function square(packed, { queries, tokens, planes }) {
  const [wide, size] = [tokens.length, queries.length * tokens.length];
  const mean = planes.indexOf("mean"); // the planes before it are the heads
  const result = new Uint8Array(planes.length * size);
  let from = 0;
  for (let plane = 0; plane < planes.length; plane++) {
    if (plane === mean) continue;
    for (let query = 0; query < queries.length; query++) {
      const count = queries[query] + 1;
      result.set(packed.subarray(from, from + count), plane * size + query * wide);
      from += count;
    }
  }
  for (let at = 0; at < size; at++) {
    let squares = 0;
    for (let head = 0; head < mean; head++) squares += result[head * size + at] ** 2;
    result[mean * size + at] = Math.round(Math.sqrt(squares / mean));
  }
  return result;
}

/**
 * A plane enlarged from its small picture, used until its layer arrives.
 *
 * @param {Uint8Array} small all small pictures
 * @param {number} number the picture's number
 * @param {{ queries: number[], tokens: string[], side: [number, number] }} view
 */
export function enlarged(small, number, { queries, tokens, side }) {
  const [high, wide] = side;
  const result = new Uint8Array(queries.length * tokens.length);
  for (let query = 0; query < queries.length; query++) {
    const line = number * high * wide + Math.floor((query * high) / queries.length) * wide;
    for (let key = 0; key <= queries[query]; key++) {
      result[query * tokens.length + key] = small[line + Math.floor((key * wide) / tokens.length)];
    }
  }
  return result;
}

/**
 * The pairs with the largest weights, as [byte, query, key], weak ones first.
 *
 * @param {Uint8Array} bytes [query, key]
 * @param {number} wide keys
 * @param {number} most
 * @returns {[number, number, number][]}
 */
export function strongest(bytes, wide, most = MOST_LINES) {
  const counts = new Uint32Array(256);
  for (const byte of bytes) counts[byte]++;
  let least = 255;
  for (let total = counts[255]; least > LEAST_BYTE && total + counts[least - 1] <= most; least--) {
    total += counts[least - 1];
  }
  /** @type {[number, number, number][]} */
  const pairs = [];
  for (let at = 0; at < bytes.length && pairs.length < 2 * most; at++) {
    if (bytes[at] >= least) pairs.push([bytes[at], Math.floor(at / wide), at % wide]);
  }
  return pairs.sort((a, b) => a[0] - b[0]);
}
