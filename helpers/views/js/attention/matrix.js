// One head as a matrix: one row per query, one column per key.

import { pointer } from "../input.js";
import { clamp } from "../page.js";
import { short } from "../words.js";
import { HEIGHT } from "./lines.js";
import { currentPlane, focus } from "./scene.js";

export const MATRIX = 392; // width in CSS pixels
const MARGIN = { left: 84, top: 8, bottom: 66, right: 6 }; // for labels
const [WIDE, HIGH] = [MATRIX - MARGIN.left - MARGIN.right, HEIGHT - MARGIN.top - MARGIN.bottom];
const HINTS = ["row: a query (attends)", "column: a key (attended to)", "drag to enlarge"];
const LABEL = 12; // CSS pixels that a label needs

/**
 * @param {Pen} pen
 * @param {Theme} theme
 * @param {Scene} scene
 */
export function paintMatrix(pen, theme, scene) {
  const { area, view } = scene;
  const [columns, rows] = [area.k1 - area.k0, area.q1 - area.q0];
  const isDense = columns > 2 * WIDE || rows > 2 * HIGH;
  const { picture } = currentPlane(scene);
  pen.image(picture, [area.k0, area.q0, columns, rows], [MARGIN.left, MARGIN.top, WIDE, HIGH], isDense);
  const cell = { wide: WIDE / columns, high: HIGH / rows };
  paintFrames(pen, theme, scene, cell);
  paintDrag(pen, theme, scene, cell);
  paintNames(pen, theme, scene, cell);
  if (area.k1 - 1 - view.queries[area.q0] <= 0.7 * columns) return;
  HINTS.forEach((line, at) => {
    // the future is hidden, so there is room
    const look = /** @type {TextLook} */ ({ align: "right", color: theme.muted, size: 11 });
    pen.text(line, MARGIN.left + WIDE - 4, MARGIN.top + 10 + 16 * at, look);
  });
}

/**
 * Frames around the query's row and the key's column, as far as they are visible to each other.
 *
 * @param {Pen} pen
 * @param {Theme} theme
 * @param {Scene} scene
 * @param {{ wide: number, high: number }} cell
 */
function paintFrames(pen, theme, scene, cell) {
  const { area, view } = scene;
  const { query, key } = focus(scene);
  const x = MARGIN.left + (key - area.k0) * cell.wide;
  const y = MARGIN.top + (query - area.q0) * cell.high;
  const seen = Math.min(area.k1, view.queries[query] + 1) - area.k0; // keys that the query sees, in this part
  const hidden = Math.max(0, view.queries.findIndex((position) => position >= key) - area.q0); // queries before the key
  if (query >= area.q0 && query < area.q1 && seen > 0) {
    pen.box(MARGIN.left, y, seen * cell.wide, Math.max(cell.high, 2), theme.query, 1.5);
  }
  if (key >= area.k0 && key < area.k1 && hidden < area.q1 - area.q0) {
    const top = MARGIN.top + hidden * cell.high;
    pen.box(x, top, Math.max(cell.wide, 2), HIGH - hidden * cell.high, theme.key, 1.5);
  }
}

/**
 * @param {Pen} pen
 * @param {Theme} theme
 * @param {Scene} scene
 * @param {{ wide: number, high: number }} cell
 */
function paintDrag(pen, theme, { area, drag }, cell) {
  if (!drag || drag.from.query === drag.to.query) return;
  const part = dragged(drag);
  const x = MARGIN.left + (part.k0 - area.k0) * cell.wide;
  const y = MARGIN.top + (part.q0 - area.q0) * cell.high;
  pen.fill(x, y, (part.k1 - part.k0) * cell.wide, (part.q1 - part.q0) * cell.high, theme.ink, 0.25);
}

/**
 * @param {Pen} pen
 * @param {Theme} theme
 * @param {Scene} scene
 * @param {{ wide: number, high: number }} cell
 */
function paintNames(pen, theme, scene, cell) {
  const { area, view } = scene;
  const { query, key } = focus(scene);
  const every = (/** @type {number} */ size) => Math.max(1, Math.ceil(LABEL / size));
  for (let at = area.q0; at < area.q1; at += every(cell.high)) {
    const color = at === query ? theme.ink : theme.muted;
    const y = MARGIN.top + (at - area.q0 + 0.5) * cell.high;
    pen.text(short(view.tokens[view.queries[at]], 11), MARGIN.left - 5, y, { align: "right", color, size: 10.5 });
  }
  for (let at = area.k0; at < area.k1; at += every(cell.wide)) {
    const color = at === key ? theme.ink : theme.muted;
    const x = MARGIN.left + (at - area.k0 + 0.5) * cell.wide;
    const look = /** @type {TextLook} */ ({ align: "right", turned: true, color, size: 10.5 });
    pen.text(short(view.tokens[at], 10), x, MARGIN.top + HIGH + 5, look);
  }
}

/**
 * The part of the matrix that a drag spans.
 *
 * @param {{ from: Cell, to: Cell }} drag
 * @returns {Area}
 */
export function dragged({ from, to }) {
  return {
    q0: Math.min(from.query, to.query),
    q1: Math.max(from.query, to.query) + 1,
    k0: Math.min(from.key, to.key),
    k1: Math.max(from.key, to.key) + 1,
  };
}

/**
 * @param {PointerEvent} event
 * @param {Element} matrix
 * @param {Area} area
 * @returns {Cell}
 */
export function cellAt(event, matrix, area) {
  const { x, y } = pointer(event, matrix);
  const query = Math.floor(area.q0 + ((y - MARGIN.top) / HIGH) * (area.q1 - area.q0));
  const key = Math.floor(area.k0 + ((x - MARGIN.left) / WIDE) * (area.k1 - area.k0));
  return { query: clamp(query, area.q0, area.q1 - 1), key: clamp(key, area.k0, area.k1 - 1) };
}
