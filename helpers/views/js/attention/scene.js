// What an attention explorer shows at one moment, and how the reader's actions change it.

import { contextOf, sheet } from "../canvas.js";
import { rgb } from "../color.js";
import { clamp } from "../page.js";
import { strongest } from "./weights.js";

/**
 * @param {AttentionView} view
 * @param {Layers} layers
 * @returns {Scene}
 */
export function newScene(view, layers) {
  return {
    view,
    layers,
    palette: view.colors.map(rgb),
    row: view.row,
    plane: view.plane,
    chosen: { side: "query", query: view.queries.length - 1, key: 0 },
    over: null, // what is under the pointer
    area: wholeArea(view),
    drag: null,
    shown: null, // the plane that is drawn
    glance: null,
    photo: null, // the prompt's picture
  };
}

/**
 * @param {{ queries: number[], tokens: string[] }} view
 * @returns {Area}
 */
export function wholeArea({ queries, tokens }) {
  return { q0: 0, q1: queries.length, k0: 0, k1: tokens.length };
}

/** @param {Scene} scene */
export function isWhole({ area, view }) {
  return area.q1 - area.q0 === view.queries.length && area.k1 - area.k0 === view.tokens.length;
}

/**
 * The query and the key under the pointer, or else the chosen ones.
 *
 * @param {Scene} scene
 */
export function focus(scene) {
  return scene.over ?? scene.chosen;
}

/**
 * The position of the query or key on the active side.
 *
 * @param {Scene} scene
 */
export function focusPosition(scene) {
  const { side, query, key } = focus(scene);
  return side === "query" ? scene.view.queries[query] : key;
}

/** @param {string} plane */
export function planeName(plane) {
  if (/^\d+$/.test(plane)) return `head ${plane}`;
  return plane === "mean" ? "mean over heads" : plane;
}

/** @param {Scene} scene */
export function sceneName({ view, row, plane }) {
  return `layer ${view.layers[row]}, ${planeName(view.planes[plane])}`;
}

/**
 * The plane to draw; while its layer is loading, it is made from the small picture.
 *
 * @param {Scene} scene
 * @returns {Plane}
 */
export function currentPlane(scene) {
  if (scene.shown) return scene.shown;
  const { bytes, exact } = scene.layers.bytesOf(scene.row, scene.plane);
  const { queries, tokens } = scene.view;
  const picture = painted(scene.palette, bytes, queries.length, tokens.length, (query, key) => key <= queries[query]);
  scene.shown = { bytes, exact, picture, pairs: strongest(bytes, tokens.length) };
  return scene.shown;
}

/**
 * A picture of bytes [query, key], one pixel each; what a query may not see stays transparent.
 *
 * @param {number[][]} palette
 * @param {Uint8Array} bytes
 * @param {number} high
 * @param {number} wide
 * @param {(query: number, key: number) => boolean} isVisible
 */
export function painted(palette, bytes, high, wide, isVisible) {
  const target = sheet(wide, high);
  const pixels = new ImageData(wide, high);
  for (let query = 0, at = 0; query < high; query++) {
    for (let key = 0; key < wide; key++, at++) {
      if (isVisible(query, key)) pixels.data.set([...palette[bytes[at]], 255], 4 * at);
    }
  }
  contextOf(target).putImageData(pixels, 0, 0);
  return target;
}

/**
 * Show this part of the matrix; the chosen query and key move into it.
 *
 * @param {Scene} scene
 * @param {Area} area
 */
export function enlarge(scene, area) {
  scene.area = area;
  scene.chosen.query = clamp(scene.chosen.query, area.q0, area.q1 - 1);
  scene.chosen.key = clamp(scene.chosen.key, area.k0, area.k1 - 1);
}

/**
 * Move the part that is shown so that it contains the chosen query and key.
 *
 * @param {Scene} scene
 */
export function reveal({ area, chosen, view }) {
  [area.q0, area.q1] = moved(area.q0, area.q1, chosen.query, view.queries.length);
  [area.k0, area.k1] = moved(area.k0, area.k1, chosen.key, view.tokens.length);
}

/**
 * @param {number} from
 * @param {number} to
 * @param {number} at
 * @param {number} most
 */
function moved(from, to, at, most) {
  const size = to - from;
  if (at < from) return [at, at + size];
  if (at < to) return [from, to];
  const start = Math.min(most, at + 1) - size;
  return [start, start + size];
}
