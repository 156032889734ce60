// What an explorer shows, in words.

import { currentPlane, focus, focusPosition, sceneName } from "./scene.js";
import { weightOf, written } from "./weights.js";

const MOST_NAMED = 5;
const LEAST = 0.0005; // smaller weights read as 0

/**
 * What the token under the pointer is linked to: [weight, position] for every other end.
 *
 * @param {Scene} scene
 * @returns {[number, number][]}
 */
export function ends(scene) {
  const { tokens, queries } = scene.view;
  const { bytes } = currentPlane(scene);
  const { side, query, key } = focus(scene);
  if (side === "query") return tokens.map((_, at) => [weightOf(bytes[query * tokens.length + at]), at]);
  return queries.map((position, row) => [weightOf(bytes[row * tokens.length + key]), position]);
}

/** @param {Scene} scene */
export function readingOf(scene) {
  const { tokens, queries } = scene.view;
  const { bytes, exact } = currentPlane(scene);
  const { side, query, key } = focus(scene);
  const mine = focusPosition(scene);
  const best = ends(scene)
    .sort((a, b) => b[0] - a[0])
    .slice(0, MOST_NAMED)
    .filter(([weight]) => weight > LEAST)
    .map(([weight, position]) => `${tokens[position]} (${position}) ${written(weight)}`)
    .join(", ");
  const looks =
    side === "query"
      ? `query ${tokens[mine]} (${mine}) looks at ${best}`
      : `key ${tokens[mine]} (${mine}) is looked at by ${best || "no query"}`;
  const isSeen = key <= queries[query];
  const weight = isSeen ? written(weightOf(bytes[query * tokens.length + key])) : "hidden, in the future";
  const cell = `${tokens[queries[query]]} → ${tokens[key]}: ${weight}`;
  return `${sceneName(scene)}: ${looks}; cell ${cell}${exact ? "" : " (coarse: the layer is still loading)"}`;
}
