// All heads at a glance: small pictures of every plane of every layer.

import { contextOf, sharpContext, sheet } from "../canvas.js";
import { arrow, pointer, take } from "../input.js";
import { clamp } from "../page.js";
import { canvasPen } from "../pens.js";
import { painted } from "./scene.js";

const LEFT = 48; // left of the pictures, for labels
const TOP = 16;
const GAP = 2; // pixels between the pictures

/** @param {AttentionView} view */
function tileSize({ layers, planes }) {
  return Math.max(12, Math.min(36, Math.floor((750 - LEFT) / layers.length), Math.floor(320 / planes.length)));
}

/** @param {AttentionView} view */
export function glanceSize(view) {
  const size = tileSize(view);
  return { wide: LEFT + 2 + view.layers.length * size, high: TOP + 2 + view.planes.length * size };
}

/**
 * Paint all small pictures once, side by side.
 *
 * @param {Scene} scene
 */
export function paintTiles(scene) {
  const { layers, planes, queries, tokens, side } = scene.view;
  const [high, wide] = side;
  const small = /** @type {Uint8Array} */ (scene.layers.small);
  const target = sheet(layers.length * (wide + GAP), planes.length * (high + GAP));
  const context = contextOf(target);
  const lastOf = (/** @type {number} */ row) =>
    queries[Math.min(queries.length - 1, Math.ceil(((row + 1) * queries.length) / high) - 1)];
  const isVisible = (/** @type {number} */ row, /** @type {number} */ column) =>
    Math.floor((column * tokens.length) / wide) <= lastOf(row);
  layers.forEach((_, row) => {
    planes.forEach((_plane, plane) => {
      const start = (row * planes.length + plane) * high * wide;
      const picture = painted(scene.palette, small.subarray(start, start + high * wide), high, wide, isVisible);
      context.drawImage(picture, row * (wide + GAP) + GAP / 2, plane * (high + GAP) + GAP / 2);
    });
  });
  return target;
}

/**
 * @param {Pen} pen
 * @param {Theme} theme
 * @param {Scene} scene
 */
export function paintGlance(pen, theme, scene) {
  const { layers, planes } = scene.view;
  const size = tileSize(scene.view);
  const every = Math.max(1, Math.ceil(24 / size));
  layers.forEach((layer, at) => {
    if (at % every) return;
    pen.text(String(layer), LEFT + (at + 0.5) * size, 8, { align: "center", color: theme.muted, size: 10 });
  });
  planes.forEach((plane, at) => {
    pen.text(plane, LEFT - 5, TOP + (at + 0.5) * size, { align: "right", color: theme.muted, size: 10 });
  });
  const picture = /** @type {HTMLCanvasElement} */ (scene.glance);
  const place = /** @type {Box} */ ([LEFT, TOP, layers.length * size, planes.length * size]);
  pen.image(picture, [0, 0, picture.width, picture.height], place, true);
  for (const [color, line] of /** @type {[string, number][]} */ ([
    [theme.ink, 3.5],
    [theme.key, 2],
  ])) {
    pen.box(LEFT + scene.row * size, TOP + scene.plane * size, size, size, color, line);
  }
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {Theme} theme
 * @param {string} font
 * @param {Scene} scene
 */
export function drawGlance(canvas, theme, font, scene) {
  const { wide, high } = glanceSize(scene.view);
  paintGlance(canvasPen(sharpContext(canvas, wide, high), font), theme, scene);
}

/**
 * The row and the plane under the pointer, or null.
 *
 * @param {PointerEvent} event
 * @param {AttentionView} view
 * @returns {[number, number] | null}
 */
export function headAt(event, view) {
  const { x, y } = pointer(event, /** @type {Element} */ (event.target));
  const size = tileSize(view);
  const [row, plane] = [Math.floor((x - LEFT) / size), Math.floor((y - TOP) / size)];
  const isInside = row >= 0 && row < view.layers.length && plane >= 0 && plane < view.planes.length;
  return isInside ? [row, plane] : null;
}

/**
 * The row and the plane that an arrow key leads to, or null for another key.
 *
 * @param {KeyboardEvent} event
 * @param {Scene} scene
 * @returns {[number, number] | null}
 */
export function headByKey(event, { view, row, plane }) {
  const step = arrow(event);
  if (!step) return null;
  take(event);
  return [clamp(row + step.across, 0, view.layers.length - 1), clamp(plane + step.down, 0, view.planes.length - 1)];
}
