// Attention over a picture: the patches that get attention stay bright.

import { pointer } from "../input.js";
import { currentPlane, focus } from "./scene.js";
import { weightOf, written } from "./weights.js";

const SIDE = 232; // the largest side, in CSS pixels
const FRAME = "#e69f00";

/** @param {AttentionView} view */
export function pictureSize({ grid }) {
  const [rows, columns] = grid ?? [1, 1];
  const cell = Math.max(1, Math.floor(SIDE / Math.max(rows, columns)));
  return { cell, wide: columns * cell, high: rows * cell };
}

/**
 * How much of the query's attention each patch gets, or how much each patch gives to the key: [patch, weight].
 *
 * @param {Scene} scene
 * @returns {[number, number][]}
 */
export function patchWeights(scene) {
  const { tokens, queries } = scene.view;
  const patches = scene.view.patches ?? [];
  const { bytes } = currentPlane(scene);
  const { side, query, key } = focus(scene);
  const rowOf = new Map(queries.map((position, row) => [position, row]));
  /** @type {[number, number][]} */
  const weights = [];
  patches.forEach((patch, position) => {
    if (patch < 0) return;
    const row = rowOf.get(position);
    if (side === "query") weights.push([patch, weightOf(bytes[query * tokens.length + position])]);
    else weights.push([patch, row === undefined ? 0 : weightOf(bytes[row * tokens.length + key])]);
  });
  return weights;
}

/**
 * @param {Pen} pen
 * @param {Theme} theme
 * @param {Scene} scene
 */
export function paintPicture(pen, theme, scene) {
  const { view, photo } = scene;
  const { cell, wide, high } = pictureSize(view);
  const columns = view.grid?.[1] ?? 1;
  const corner = (/** @type {number} */ patch) => [(patch % columns) * cell, Math.floor(patch / columns) * cell];
  if (photo) pen.image(photo, [0, 0, photo.width, photo.height], [0, 0, wide, high], true);
  else pen.fill(0, 0, wide, high, theme.shade, 1);
  const weights = patchWeights(scene);
  const most = Math.max(...weights.map(([, weight]) => weight), 1e-9);
  for (const [patch, weight] of weights) {
    const [x, y] = corner(patch);
    pen.fill(x, y, cell, cell, "#000000", 0.82 * (1 - Math.sqrt(weight / most)));
  }
  const brightest = weights.find(([, weight]) => weight === most)?.[0] ?? 0;
  const [left, top] = corner(brightest); // framed, because brightness alone says little on a dark picture
  pen.box(left, top, cell, cell, FRAME, 2);
  const { query, key } = focus(scene);
  for (const [side, position] of /** @type {[Side, number][]} */ ([
    ["query", view.queries[query]],
    ["key", key],
  ])) {
    const patch = view.patches?.[position] ?? -1;
    const [x, y] = corner(patch);
    if (patch >= 0) pen.box(x, y, cell, cell, theme[side], 3);
  }
}

/**
 * What the picture shows, in words.
 *
 * @param {Scene} scene
 */
export function pictureWords(scene) {
  const weights = patchWeights(scene).map(([, weight]) => weight);
  const most = Math.max(...weights, 1e-9);
  if (focus(scene).side === "key") {
    return `how strongly each patch, as a query, looks at the key; largest: ${written(most)} (framed)`;
  }
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return `${written(total)} of this query's attention is on the picture; most on one patch: ${written(most)} (framed)`;
}

/**
 * @param {PointerEvent} event
 * @param {Scene} scene
 * @returns {Spot}
 */
export function patchAt(event, { view, chosen }) {
  const { x, y } = pointer(event, /** @type {Element} */ (event.target));
  const { cell } = pictureSize(view);
  const [rows, columns] = view.grid ?? [1, 1];
  const row = Math.max(0, Math.min(rows - 1, Math.floor(y / cell)));
  const column = Math.max(0, Math.min(columns - 1, Math.floor(x / cell)));
  const key = Math.max(0, (view.patches ?? []).indexOf(row * columns + column));
  return { side: "key", query: chosen.query, key };
}
