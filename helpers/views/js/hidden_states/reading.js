// A cell in words, and what the colours mean.

import { ramp } from "../color.js";
import { make } from "../page.js";
import { threeDigits } from "../words.js";
import { COLORINGS } from "./layouts.js";

const MEASURES = /** @type {const} */ (["probability", "entropy", "norm", "change"]);
/** @type {Record<string, string>} */
const KINDS = { apart: "distance relative to norm", difference: "difference" };

/**
 * @param {StatesView} view
 * @param {GridLayout} panel
 * @param {{ layer: number, position: number }} place
 */
export function cellInWords(view, panel, { layer, position }) {
  const grid = view.grids[panel.grid];
  const column = position - grid.first;
  const parts = MEASURES.map((kind) => `${kind} ${grid[kind]?.[layer][column] ?? "–"}`);
  const says = grid.says ? `predicts ${grid.says[layer][column]}; ` : "";
  const where = `layer ${layer}, position ${position} ${panel.tokens[position - panel.first]}`;
  return `${where}: ${says}${parts.join(", ")}${ownValue(panel, layer, position)}`;
}

/**
 * @param {GridLayout} panel
 * @param {number} layer
 * @param {number} position
 */
function ownValue({ kind, values, first }, layer, position) {
  if (!values || MEASURES.some((measure) => measure === kind)) return "";
  return `; ${KINDS[kind] ?? kind} ${threeDigits(values[layer][position - first])}`;
}

/**
 * @param {StatesView} view
 * @param {GridPanel[]} panels
 * @param {{ coloring: Coloring, scale: Scale | null, tints: Map<string, string> }} look
 */
export function legend(view, panels, { coloring, scale, tints }) {
  const notes = [make("span", { class: "hx-note" }, "row 0: embedding; bold: the same token as in the top row")];
  if (view.no_lens) notes.push(make("span", { class: "hx-note hx-why" }, `No logit lens here: ${view.no_lens}`));
  if (panels.length > 2) notes.push(make("span", { class: "hx-note" }, differenceNote(coloring)));
  if (!scale) return [...[...tints].map(([text, color]) => tokenChip(text, color)), ...notes];
  const bar = make("span", { class: "hx-ramp", "aria-hidden": "true" });
  bar.style.background = ramp(scale.colors);
  const [low, high] = [scale.low, scale.high].map((value) => threeDigits(scale.log ? 10 ** value : value));
  const end = coloring === "change" ? `${high} or more` : high;
  return [make("span", {}, `${COLORINGS[coloring]}: ${low}`), bar, make("span", {}, end), ...notes];
}

/**
 * @param {string} text
 * @param {string} color
 */
function tokenChip(text, color) {
  const chip = make("span", { class: "hx-chip" }, text);
  chip.style.background = color;
  chip.style.color = "#111";
  return chip;
}

/** @param {Coloring} coloring */
function differenceNote(coloring) {
  if (coloring === "token") {
    return "difference: distance of the two states relative to their norm, 0 to 1; =: both predict the same token";
  }
  if (coloring === "norm") return "difference: log2 of the ratio, red where the right one is larger";
  return "difference: right minus left, red above 0; matched from the end";
}
