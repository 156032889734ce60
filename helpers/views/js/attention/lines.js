// One head as lines: queries on the left, keys on the right.

import { pointer } from "../input.js";
import { clamp } from "../page.js";
import { short } from "../words.js";
import { currentPlane, focus } from "./scene.js";
import { weightOf, written } from "./weights.js";

export const HEIGHT = 372; // height of lines and matrix, in CSS pixels
export const LINES = 342;
const EDGE = 9; // above the first line and below the last
const COLUMN = 108; // width of the labels beside the lines
const LEAST_BYTE = 8; // weaker weights of the token under the pointer get no line
const MOST_CHARACTERS = 14;
const LINE_HEIGHT = 13;

/**
 * The y coordinate of an entry when `from` to `to` are shown.
 *
 * @param {number} at
 * @param {number} from
 * @param {number} to
 */
export function lineY(at, from, to) {
  return EDGE + ((at - from + 0.5) / (to - from)) * (HEIGHT - 2 * EDGE);
}

/**
 * The entries at the other ends of the lines from the token under the pointer: [weight, entry], the strongest first.
 *
 * @param {Scene} scene
 * @returns {[number, number][]}
 */
function linesOf(scene) {
  const { bytes } = currentPlane(scene);
  const { area, view } = scene;
  const { side, query, key } = focus(scene);
  const wide = view.tokens.length;
  const [from, to] = side === "query" ? [area.k0, area.k1] : [area.q0, area.q1];
  /** @type {[number, number][]} */
  const strong = [];
  for (let at = from; at < to; at++) {
    const byte = side === "query" ? bytes[query * wide + at] : bytes[at * wide + key];
    if (byte >= LEAST_BYTE) strong.push([weightOf(byte), at]);
  }
  return strong.sort((a, b) => b[0] - a[0]);
}

/**
 * @param {Pen} pen
 * @param {Theme} theme
 * @param {Scene} scene
 */
export function paintLines(pen, theme, scene) {
  const { area, view } = scene;
  const { side, query, key } = focus(scene);
  const [left, right] = [COLUMN, LINES - COLUMN];
  const queryY = (/** @type {number} */ at) => lineY(at, area.q0, area.q1);
  const keyY = (/** @type {number} */ at) => lineY(at, area.k0, area.k1);
  for (const [byte, q, k] of currentPlane(scene).pairs) {
    if (q < area.q0 || q >= area.q1 || k < area.k0 || k >= area.k1) continue;
    pen.curve(left, queryY(q), right, keyY(k), theme.muted, 0.04 + 0.25 * weightOf(byte), 1);
  }
  const strong = linesOf(scene);
  for (const [weight, at] of strong) {
    const [y1, y2] = side === "query" ? [queryY(query), keyY(at)] : [queryY(at), keyY(key)];
    pen.curve(left, y1, right, y2, theme[side], Math.min(1, 0.12 + Math.sqrt(weight)), 0.8 + 3.2 * weight);
  }
  const strengths = new Map(strong.map(([weight, at]) => [at, weight]));
  const none = new Map();
  const isQuery = side === "query";
  paintLabels(pen, theme, {
    from: area.q0,
    to: area.q1,
    nameAt: (at) => view.tokens[view.queries[at]],
    x: left - 6,
    align: "right",
    chosen: isQuery ? query : null,
    strengths: isQuery ? none : strengths,
    tint: theme.key,
    own: theme.query,
  });
  paintLabels(pen, theme, {
    from: area.k0,
    to: area.k1,
    nameAt: (at) => view.tokens[at],
    x: right + 6,
    align: "left",
    chosen: isQuery ? null : key,
    strengths: isQuery ? strengths : none,
    tint: theme.query,
    own: theme.key,
  });
}

/**
 * @typedef {object} Column
 * @property {number} from
 * @property {number} to
 * @property {(at: number) => string} nameAt
 * @property {number} x
 * @property {"left" | "right"} align
 * @property {number | null} chosen
 * @property {Map<number, number>} strengths
 * @property {string} tint
 * @property {string} own
 */

/**
 * Which entries of a column get a label, the important ones first: if there is no room for all, the relevant ones and
 * every n-th.
 *
 * @param {Column} column
 */
export function labelled({ from, to, chosen, strengths }) {
  const high = (HEIGHT - 2 * EDGE) / (to - from);
  const isTight = high < LINE_HEIGHT;
  const byWeight = [...strengths.entries()].sort((a, b) => b[1] - a[1]).map(([at]) => at);
  const others = [];
  for (let at = from; at < to; at += Math.max(1, Math.ceil(15 / high))) others.push(at);
  const first = chosen === null ? [] : [chosen];
  /** @type {number[]} */
  const taken = [];
  return [...new Set([...first, ...byWeight.slice(0, isTight ? 12 : byWeight.length), ...others])].filter((at) => {
    const y = lineY(at, from, to);
    if (at < from || at >= to || (isTight && taken.some((other) => Math.abs(other - y) < LINE_HEIGHT))) return false;
    taken.push(y);
    return true;
  });
}

/**
 * @param {Pen} pen
 * @param {Theme} theme
 * @param {Column} column
 */
function paintLabels(pen, theme, column) {
  const { from, to, nameAt, x, align, chosen, strengths, tint, own } = column;
  const left = align === "left" ? x - 3 : x + 3 - COLUMN;
  for (const at of labelled(column)) {
    const y = lineY(at, from, to);
    const weight = strengths.get(at) ?? 0;
    const bold = at === chosen;
    if (weight) pen.fill(left, y - 7, COLUMN, 14, tint, 0.75 * Math.sqrt(weight));
    if (bold) pen.box(align === "left" ? left : left + 4, y - 7, COLUMN - 4, 14, own, 2);
    const color = weight || bold ? theme.ink : theme.muted;
    pen.text(labelText(nameAt(at), weight, align), x, y, { align, color, size: 12, bold });
  }
}

/**
 * A token with its weight on the side that faces the lines.
 *
 * @param {string} token
 * @param {number} weight
 * @param {"left" | "right"} align
 */
export function labelText(token, weight, align) {
  if (weight < 0.005) return short(token, MOST_CHARACTERS);
  const number = written(weight);
  const label = short(token, MOST_CHARACTERS - number.length - 1);
  return align === "left" ? `${label} ${number}` : `${number} ${label}`;
}

/**
 * What is under the pointer: a query in the left half, a key in the right half.
 *
 * @param {PointerEvent} event
 * @param {Scene} scene
 * @returns {Spot}
 */
export function lineAt(event, { area, chosen }) {
  const { x, y } = pointer(event, /** @type {Element} */ (event.target));
  const isLeft = x < LINES / 2;
  const [from, to] = isLeft ? [area.q0, area.q1] : [area.k0, area.k1];
  const at = clamp(from + Math.floor(((y - EDGE) / (HEIGHT - 2 * EDGE)) * (to - from)), from, to - 1);
  return isLeft ? { side: "query", query: at, key: chosen.key } : { side: "key", query: chosen.query, key: at };
}
