// The drawing of one grid: layers from the bottom up, positions from left to right.

import { colorOf, isBright } from "../color.js";
import { drawing } from "../svg.js";
import { cut } from "../words.js";
import { COLORINGS, FOOT, HEAD, ROW, SIDE } from "./layouts.js";

const FONT = "DejaVu Sans Mono, Menlo, Consolas, Noto Sans Mono CJK SC, Noto Sans CJK SC, monospace";
const LETTER = 6.1; // width in CSS pixels

/**
 * @param {GridLayout} grid
 * @param {{ wide: number, scale: Scale | null, tints: Map<string, string>, coloring: Coloring }} look
 */
export function drawGrid(grid, { wide, scale, tints, coloring }) {
  const rows = grid.texts.length;
  const width = SIDE + wide * grid.tokens.length + 4;
  const height = HEAD + rows * ROW + FOOT;
  const name = grid.name || "prompt";
  const size = `${rows} layers by ${grid.tokens.length} positions, coloured by ${COLORINGS[coloring]}`;
  const svg = drawing("svg", {
    class: "hx-map",
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    tabindex: 0,
    role: "application",
    "aria-roledescription": "grid of layers by positions",
    "data-lm-suppress-shortcuts": "true",
    "aria-label": `${name}: ${size}. Arrow keys read cells, Enter inspects one.`,
    "font-family": FONT,
  });
  const look = { wide, scale, tints };
  grid.texts.forEach((_, layer) => {
    svg.append(...drawRow(grid, layer, look));
  });
  svg.append(...drawFoot(grid, wide), drawSide(name, rows), drawCursor(wide));
  return svg;
}

/**
 * @param {GridLayout} grid
 * @param {number} layer
 * @param {{ wide: number, scale: Scale | null, tints: Map<string, string> }} look
 */
function drawRow(grid, layer, { wide, scale, tints }) {
  const rows = grid.texts.length;
  const y = HEAD + (rows - 1 - layer) * ROW;
  const fits = Math.floor((wide - 4) / LETTER);
  return grid.texts[layer].flatMap((text, at) => {
    const fill = grid.values && scale ? colorOf(grid.values[layer][at], scale) : tints.get(text);
    const isLast = grid.kind !== "difference" && grid.kind !== "apart" && text === grid.texts[rows - 1][at];
    const x = SIDE + at * wide;
    const color = fill ? (isBright(fill) ? "#111" : "#fff") : "var(--ink)";
    const words = { "font-size": 10, "text-anchor": "middle", "font-weight": isLast ? 700 : 400, fill: color };
    return [
      drawing("rect", { x, y, width: wide - 1, height: ROW - 1, fill: fill || "var(--shade)" }),
      drawing("text", { x: x + (wide - 1) / 2, y: y + 11.5, ...words }, cut(text, fits)),
    ];
  });
}

/**
 * The prompt's tokens, slanted.
 *
 * @param {GridLayout} grid
 * @param {number} wide
 */
function drawFoot(grid, wide) {
  const y = HEAD + grid.texts.length * ROW + 8;
  return grid.tokens.map((token, at) => {
    const x = SIDE + (at + 0.5) * wide;
    const look = { "font-size": 10.5, "text-anchor": "end", fill: "var(--ink)", transform: `rotate(-42 ${x} ${y})` };
    return drawing("text", { x, y, ...look }, cut(token, 13));
  });
}

/**
 * The name and the layers' numbers, which stay visible when the grid is scrolled.
 *
 * @param {string} name
 * @param {number} rows
 */
function drawSide(name, rows) {
  const title = { "font-size": 12, "font-weight": 600, fill: "var(--muted)" };
  const side = drawing(
    "g",
    { class: "hx-side" },
    drawing("rect", { width: SIDE - 2, height: HEAD + rows * ROW, fill: "var(--paper)" }),
    drawing("text", { x: SIDE, y: 13, ...title }, name),
  );
  for (let layer = 0; layer < rows; layer += rows <= 16 ? 1 : 2) {
    const y = HEAD + (rows - 1 - layer) * ROW + 12;
    const look = { "font-size": 10, "text-anchor": "end", fill: "var(--muted)" };
    side.append(drawing("text", { x: SIDE - 5, y, ...look }, String(layer)));
  }
  return side;
}

/** @param {number} wide */
function drawCursor(wide) {
  const line = { fill: "none", stroke: "var(--vermillion)", "stroke-width": 2.5, rx: 2 };
  return drawing("rect", { class: "hx-cursor", width: wide + 1, height: ROW + 1, ...line });
}

/**
 * Put the frame around a cell, or hide it if this grid does not show the cell. Returns whether it does.
 *
 * @param {GridPanel} panel
 * @param {Place} place
 */
export function frameCell(panel, { grid, layer, position }) {
  const frame = /** @type {Element} */ (panel.svg.querySelector(".hx-cursor"));
  const column = position - panel.first;
  const isInside = panel.grid === grid && column >= 0 && column < panel.tokens.length;
  frame.setAttribute("visibility", isInside ? "visible" : "hidden");
  frame.setAttribute("x", String(SIDE + column * panel.wide - 1));
  frame.setAttribute("y", String(HEAD + (panel.texts.length - 1 - layer) * ROW - 1));
  return isInside;
}
