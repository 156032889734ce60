// The parts of an attention explorer's page, and how they are redrawn.

import { sharpContext } from "../canvas.js";
import { ramp } from "../color.js";
import { button, make } from "../page.js";
import { canvasPen } from "../pens.js";
import { chipRow } from "./chips.js";
import { HEIGHT, LINES, paintLines } from "./lines.js";
import { MATRIX, paintMatrix } from "./matrix.js";
import { paintPicture, pictureSize, pictureWords } from "./picture.js";
import { readingOf } from "./reading.js";
import { isWhole, planeName, sceneName } from "./scene.js";

const TICKS = [0, 0.01, 0.1, 0.25, 0.5, 1];
const COLORS = /** @type {const} */ (["ink", "muted", "paper", "rule", "shade", "query", "key"]);

/** @typedef {ReturnType<typeof newParts>} Parts */

/**
 * @typedef {object} Acts
 * @property {(row: number, plane: number) => void} select
 * @property {(side: Side) => void} turn
 * @property {() => void} showAll
 * @property {(kind: "png" | "svg") => void} save
 * @property {(position: number) => void} choosePosition
 * @property {(event: KeyboardEvent) => void} moveByKey
 * @property {Record<"heads" | "lines" | "matrix" | "picture", Attributes>} listeners
 */

/**
 * @param {AttentionView} view
 * @param {Acts} acts
 */
export function newParts(view, acts) {
  const canvases = newCanvases(view, acts.listeners);
  const bars = newBars(view, acts);
  const share = make("div", { class: "hx-where" });
  const reading = make("div", { class: "hx-reading", "aria-live": "polite" });
  const message = make("div", { class: "hx-message", role: "alert" });
  const chips = chipRow(view, { choose: acts.choosePosition, onkeydown: acts.moveByKey });
  const picture = view.patches ? [make("div", { class: "hx-panel" }, canvases.picture, share)] : [];
  const root = make(
    "div",
    { class: "hx hx-attention", role: "region", "aria-label": "Attention explorer" },
    make("div", { class: "hx-bar" }, make("strong", {}, "All heads at a glance"), bars.pointed),
    make("div", { class: "hx-scroll" }, canvases.heads),
    bars.node,
    make("div", { class: "hx-panels" }, canvases.lines, canvases.matrix),
    weightScale(view.colors),
    reading,
    make("div", { class: "hx-below" }, ...picture, chips.node),
    message,
  );
  return { root, share, reading, message, chips, ...canvases, ...bars };
}

/**
 * @param {AttentionView} view
 * @param {Acts["listeners"]} listeners
 */
function newCanvases(view, listeners) {
  const count = `${view.layers.length} layers by ${view.planes.length}`;
  const label = `All heads at a glance: ${count}. Arrow keys choose.`;
  return {
    heads: canvas("heads", "map of layers by heads", label, listeners.heads),
    lines: canvas("lines", "lines between tokens", "", listeners.lines),
    matrix: canvas("matrix", "matrix of weights", "", listeners.matrix),
    picture: canvas("picture", "picture in patches", "", listeners.picture),
  };
}

/**
 * A canvas that takes keys, so it is more than an image.
 *
 * @param {string} name
 * @param {string} what
 * @param {string} label
 * @param {Attributes} listeners
 */
function canvas(name, what, label, listeners) {
  const about = { tabindex: 0, role: "application", "aria-roledescription": what, "aria-label": label };
  return make("canvas", { class: `hx-${name}`, ...about, ...listeners });
}

/**
 * What is chosen, the direction, and the buttons.
 *
 * @param {AttentionView} view
 * @param {Acts} acts
 */
function newBars(view, acts) {
  const pick = () => acts.select(layers.selectedIndex, planes.selectedIndex);
  const layers = choice("Layer", view.layers.map(layerName), pick);
  const planes = choice("Head", view.planes.map(planeName), pick);
  const looks = { class: "hx-tokeys", title: "the keys that the chosen query looks at" };
  const toKeys = button("query → keys", () => acts.turn("query"), looks);
  const isLookedAt = { class: "hx-toqueries", title: "the queries that look at the chosen key" };
  const toQueries = button("key ← queries", () => acts.turn("key"), isLookedAt);
  const all = button("whole matrix", acts.showAll, { class: "hx-whole" });
  const saving = /** @type {const} */ (["png", "svg"]).map((kind) =>
    button(kind.toUpperCase(), () => acts.save(kind), {
      class: `hx-${kind}`,
      "aria-label": `Save as ${kind.toUpperCase()}`,
    }),
  );
  const pair = make("span", { class: "hx-pair", role: "group", "aria-label": "Direction" }, toKeys, toQueries);
  const space = make("span", { class: "hx-fill-space" });
  const node = make("div", { class: "hx-bar" }, layers, planes, pair, all, space, ...saving);
  return { node, layers, planes, toKeys, toQueries, all, pointed: make("span", { class: "hx-where hx-pointed" }) };
}

/** @param {number} layer */
export function layerName(layer) {
  return `layer ${layer}`;
}

/**
 * @param {string} name
 * @param {string[]} entries
 * @param {() => void} pick
 */
function choice(name, entries, pick) {
  const options = entries.map((entry) => make("option", {}, entry));
  return make("select", { "aria-label": name, onchange: pick }, ...options);
}

/** @param {string[]} colors */
function weightScale(colors) {
  const bar = make("span");
  bar.style.background = ramp(colors.filter((_, at) => at % 15 === 0));
  for (const weight of TICKS) {
    const tick = make("span", { class: "hx-tick" }, String(weight));
    tick.style.left = `${100 * Math.sqrt(weight)}%`;
    bar.append(tick);
  }
  return make("div", { class: "hx-scale", "aria-hidden": "true" }, make("span", {}, "weight"), bar);
}

/**
 * @param {Parts} parts
 * @param {Scene} scene
 */
export function drawScene(parts, scene) {
  const { root, lines, matrix, picture } = parts;
  const [theme, font] = [themeOf(root), fontOf(root)];
  paintLines(canvasPen(sharpContext(lines, LINES, HEIGHT), font), theme, scene);
  paintMatrix(canvasPen(sharpContext(matrix, MATRIX, HEIGHT), font), theme, scene);
  if (scene.view.patches) {
    const { wide, high } = pictureSize(scene.view);
    paintPicture(canvasPen(sharpContext(picture, wide, high), font), theme, scene);
  }
  parts.chips.draw(scene);
  writeScene(parts, scene);
}

/**
 * Update the text and the state of the buttons.
 *
 * @param {Parts} parts
 * @param {Scene} scene
 */
function writeScene(parts, scene) {
  const { side } = scene.chosen;
  parts.root.setAttribute("aria-busy", String(scene.layers.isAsked(scene.row)));
  parts.toKeys.setAttribute("aria-pressed", String(side === "query"));
  parts.toQueries.setAttribute("aria-pressed", String(side === "key"));
  parts.all.disabled = isWhole(scene);
  const words = readingOf(scene);
  parts.reading.textContent = words;
  parts.lines.setAttribute("aria-label", `Lines from queries on the left to keys on the right. ${words}`);
  const how = "Matrix of weights, one row per query. Arrow keys move, Enter changes direction.";
  parts.matrix.setAttribute("aria-label", `${how} ${sceneName(scene)}`);
  if (!scene.view.patches) return;
  parts.share.textContent = pictureWords(scene);
  parts.picture.setAttribute("aria-label", `Attention over the picture. ${parts.share.textContent}`);
}

/**
 * @param {Element} root
 * @returns {Theme}
 */
export function themeOf(root) {
  const look = getComputedStyle(root);
  const colors = COLORS.map((name) => [name, look.getPropertyValue(`--${name}`).trim()]);
  return /** @type {Theme} */ (Object.fromEntries(colors));
}

/** @param {Element} root */
export function fontOf(root) {
  return getComputedStyle(root).getPropertyValue("--sans").trim();
}
