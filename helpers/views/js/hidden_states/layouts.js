// Which grids are drawn, with which values and on which scale.

import { largest, smallest, tint } from "../color.js";
import { cut } from "../words.js";

/** @type {Record<Coloring, string>} */
export const COLORINGS = {
  token: "the predicted token",
  probability: "its probability",
  entropy: "entropy (nats)",
  norm: "norm",
  change: "change from the layer below",
  cosine: "cosine to the chosen cell",
};
const SHADES = ["#D55E00", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#0072B2"];
const SMALLEST = 1e-9;

/**
 * The prompt, what is beside it, and their difference, each as values and texts by layer and column.
 *
 * @param {StatesView} view
 * @param {Coloring} coloring
 * @returns {GridLayout[]}
 */
export function layouts(view, coloring) {
  /** @type {GridLayout[]} */
  const grids = view.grids.map((grid, number) => ({
    name: grid.name,
    grid: number,
    first: grid.first,
    tokens: grid.tokens,
    texts: grid.says ?? grid.norm.map((row) => row.map(() => "")),
    values: coloring === "token" ? null : grid[coloring],
    kind: coloring,
  }));
  const { difference } = view;
  if (!difference) return grids;
  const values = difference[coloring] ?? /** @type {Numbers} */ (difference.token);
  return [
    ...grids,
    {
      name: "difference",
      grid: 1,
      first: difference.first,
      tokens: difference.tokens.map((token, at) => bothTokens(difference.tokens_before[at], token)),
      texts: difference.says ?? values.map((row) => row.map(() => "")),
      values,
      kind: coloring === "token" ? "apart" : "difference",
    },
  ];
}

/**
 * @param {string} before
 * @param {string} after
 */
function bothTokens(before, after) {
  return before === after ? after : `${cut(before, 6)}→${cut(after, 6)}`;
}

/**
 * The scale of a kind of values, wide enough for these grids.
 *
 * @param {GridLayout["kind"]} kind
 * @param {StatesView} view
 * @param {GridLayout[]} grids
 * @returns {Scale | null}
 */
export function scaleOf(kind, view, grids) {
  const all = grids.flatMap((grid) => (grid.values ? grid.values.flat() : []));
  const numbers = /** @type {number[]} */ (all.filter((value) => value !== null));
  switch (kind) {
    case "token":
      return null;
    case "probability":
    case "change":
    case "apart":
      return { low: 0, high: 1, colors: view.colors };
    case "entropy":
      return { low: 0, high: view.most_entropy, colors: view.colors };
    case "norm": {
      const logs = numbers.map((value) => Math.log10(Math.max(value, SMALLEST)));
      return { low: smallest(logs), high: largest(logs), colors: view.colors, log: true };
    }
    case "cosine":
      return { low: -1, high: 1, colors: view.differences };
    default: {
      const most = largest(numbers.map(Math.abs)) || 1;
      return { low: -most, high: most, colors: view.differences };
    }
  }
}

/**
 * The tokens that most cells predict get a colour each; every cell shows its label anyway.
 *
 * @param {StatesView} view
 * @returns {Map<string, string>}
 */
export function shades(view) {
  const says = view.grids.flatMap((grid) => (grid.says ? [grid.says] : []));
  const answers = new Set(says.map((rows) => rows[rows.length - 1].at(-1) ?? ""));
  const lastRows = new Set(says.flatMap((rows) => rows[rows.length - 1]));
  /** @type {Map<string, number>} */
  const counts = new Map();
  for (const text of says.flat(2)) counts.set(text, (counts.get(text) ?? 0) + 1);
  const rest = [...counts]
    .filter(([text, count]) => count > 1 && !answers.has(text))
    .sort((a, b) => Number(lastRows.has(b[0])) - Number(lastRows.has(a[0])) || b[1] - a[1])
    .map(([text]) => text);
  return new Map([...answers, ...rest].slice(0, SHADES.length).map((text, at) => [text, tint(SHADES[at])]));
}

/**
 * The width of a column, so that all grids fit if possible.
 *
 * @param {GridLayout[]} grids
 * @param {number} room the available width, in CSS pixels
 */
export function columnWidth(grids, room) {
  const columns = largest(grids.map((grid) => grid.tokens.length));
  const most = grids.length > 1 ? 62 : 84;
  return Math.max(42, Math.min(most, (room / grids.length - SIDE - 14) / columns));
}

export const ROW = 16; // height of a layer, in CSS pixels
export const SIDE = 30; // left of a grid, for the layers' numbers
export const FOOT = 64; // below it, for the prompt's tokens
export const HEAD = 20; // above it, for its name

/**
 * The cell at a place of a grid's drawing, or null.
 *
 * @param {GridPanel} panel
 * @param {number} x
 * @param {number} y
 * @returns {Place | null}
 */
export function cellOf({ grid, first, tokens, texts, wide }, x, y) {
  const [column, row] = [Math.floor((x - SIDE) / wide), Math.floor((y - HEAD) / ROW)];
  if (column < 0 || column >= tokens.length || row < 0 || row >= texts.length) return null;
  return { grid, layer: texts.length - 1 - row, position: first + column };
}
