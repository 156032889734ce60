// Who wrote a token there: a map of all heads and MLPs, and the largest of them by name.

import { colorOf, largest } from "../color.js";
import { arrow, isChoice, pointer, take } from "../input.js";
import { button, clamp, group, make } from "../page.js";
import { drawing, setAll } from "../svg.js";
import { signed } from "../words.js";
import { number } from "./cell.js";

const LEFT = 24; // left of the map, for the layers' numbers
const TOP = 2;
const BOX = 13; // the largest width of a head, in CSS pixels
const HIGH = 7; // height of a layer
const GAP = 3; // between the heads and the MLPs
const ROOM = 320; // width for all heads

export class WritersMap {
  pick = { layer: 0, column: 0 };
  title = make("h4");
  why = make("p", { class: "hx-why" });
  best = group("hx-list hx-best", "Largest writers");
  reading = make("div", { class: "hx-small", "aria-live": "polite" });
  map = drawing("svg", {
    class: "hx-wrote",
    tabindex: 0,
    role: "application",
    "aria-roledescription": "map of heads and MLPs",
    "data-lm-suppress-shortcuts": "true",
  });
  who = make("div", { class: "hx-who" }, this.map, this.best);
  node = make("section", {}, this.title, this.why, this.who, this.reading);

  /**
   * @param {() => StatesView} view
   * @param {Send} send
   */
  constructor(view, send) {
    this.view = view;
    this.send = send;
    this.map.addEventListener("keydown", (event) => this.move(event));
    this.map.addEventListener("pointermove", (event) => this.point(event));
    this.map.addEventListener("pointerdown", (event) => {
      if (this.point(event)) this.toggle();
    });
  }

  /** @param {PointerEvent} event */
  point(event) {
    const v = this.view();
    const { x, y } = pointer(event, this.map);
    const [column, row] = [Math.floor((x - LEFT) / boxWidth(v)), Math.floor((y - TOP) / HIGH)];
    if (column < 0 || column > v.heads || row < 0 || row >= v.layers) return false;
    Object.assign(this.pick, { layer: v.layers - 1 - row, column });
    this.read();
    return true;
  }

  /** @param {KeyboardEvent} event */
  move(event) {
    const { pick } = this;
    const v = this.view();
    const step = arrow(event);
    if (step) {
      pick.layer = clamp(pick.layer - step.down, 0, v.layers - 1);
      pick.column = clamp(pick.column + step.across, 0, v.heads);
    } else if (isChoice(event)) this.toggle();
    else return;
    take(event);
    this.read();
  }

  toggle() {
    const { layer, column } = this.pick;
    if (column < this.view().heads) this.send("toggle_head", { layer, head: column });
    else this.send("skip", { layer, part: "mlp" });
  }

  /** Frame the head or MLP that is picked, and say what it wrote. */
  read() {
    const v = this.view();
    const { layer, column } = this.pick;
    if (!v.cell.writers) return;
    const frame = /** @type {Element} */ (this.map.querySelector(".hx-pick"));
    setAll(frame, { x: boxX(v, column) - 1, y: boxY(v, layer) - 1 });
    const wrote = `${signed(v.cell.writers.table[layer][column])} to the logit; click or Enter switches it off`;
    const words = layer < v.cell.layer ? wrote : "writes only after this cell";
    this.reading.textContent = `${writerName(v, layer, column)}: ${words}`;
  }

  /** @param {StatesView} v */
  draw(v) {
    const { writers, asked, layer } = v.cell;
    this.title.textContent = asked.label ? `Who wrote ${asked.label} there?` : "Who wrote there?";
    this.why.textContent = v.cell.no_writers;
    for (const part of [this.who, this.reading]) part.hidden = !writers;
    if (!writers) return;
    this.pick.layer = Math.min(this.pick.layer, v.layers - 1);
    drawMap(this.map, v, writers);
    const what = `Logit of ${asked.label} written by each head and MLP below layer ${layer}.`;
    this.map.setAttribute("aria-label", `${what} Arrow keys read, Enter switches a head off or on.`);
    this.best.replaceChildren(...bestRows(v, writers, this.send));
    this.read();
  }
}

/** @param {StatesView} v */
function boxWidth(v) {
  return Math.max(4, Math.min(BOX, ROOM / (v.heads + 1)));
}

/**
 * @param {StatesView} v
 * @param {number} column
 */
function boxX(v, column) {
  return LEFT + column * boxWidth(v) + (column === v.heads ? GAP : 0);
}

/**
 * @param {StatesView} v
 * @param {number} layer
 */
function boxY(v, layer) {
  return (v.layers - 1 - layer) * HIGH + TOP;
}

/**
 * @param {SVGSVGElement} map
 * @param {StatesView} v
 * @param {Writers} writers
 */
function drawMap(map, v, writers) {
  const box = boxWidth(v);
  const [width, height] = [LEFT + (v.heads + 1) * box + 16, v.layers * HIGH + 26];
  setAll(map, { width, height, viewBox: `0 0 ${width} ${height}` });
  const most = largest(writers.table.flat().map(Math.abs)) || 1;
  const scale = { low: -most, high: most, colors: v.differences };
  const boxes = writers.table.flatMap((row, layer) =>
    row.flatMap((value, column) => {
      const [x, y] = [boxX(v, column), boxY(v, layer)];
      const fill = (layer < v.cell.layer && colorOf(value, scale)) || "var(--shade)";
      const mark = drawing("rect", { x, y, width: box - 1, height: HIGH - 1, fill });
      return isOff(v, layer, column) ? [mark, cross(x, y, box)] : [mark];
    }),
  );
  const frame = { width: box + 1, height: HIGH + 1, fill: "none", stroke: "var(--vermillion)", "stroke-width": 2 };
  map.replaceChildren(...boxes, ...mapLabels(v), drawing("rect", { class: "hx-pick", ...frame }));
}

/**
 * @param {number} x
 * @param {number} y
 * @param {number} box
 */
function cross(x, y, box) {
  const d = `M${x} ${y}l${box - 1} ${HIGH - 1}m0 ${1 - HIGH}l${1 - box} ${HIGH - 1}`;
  return drawing("path", { d, stroke: "#000", "stroke-width": 1.5 });
}

/** @param {StatesView} v */
function mapLabels(v) {
  const look = { "font-size": 9, fill: "var(--muted)" };
  const labels = [];
  for (let layer = 0; layer < v.layers; layer += 5) {
    const place = { x: LEFT - 4, y: boxY(v, layer) + 7, "text-anchor": "end" };
    labels.push(drawing("text", { ...place, ...look }, String(layer)));
  }
  const y = v.layers * HIGH + 14;
  labels.push(drawing("text", { x: boxX(v, 0), y, ...look }, "head 0"));
  labels.push(drawing("text", { x: boxX(v, v.heads), y, ...look }, "MLP"));
  return labels;
}

/**
 * @param {StatesView} v
 * @param {Writers} writers
 * @param {Send} send
 */
function bestRows(v, writers, send) {
  const rows = writers.best.map(([layer, column]) => {
    const value = signed(writers.table[layer][column]);
    const name = writerName(v, layer, column);
    if (column === v.heads) return make("div", { class: "hx-line" }, name, number(value));
    const off = isOff(v, layer, column);
    const line = button(name, () => send("toggle_head", { layer, head: column }), {
      class: "hx-line",
      "aria-pressed": String(off),
      title: off ? "switch it on again" : "switch it off",
      "aria-label": `${name}, ${value}: switch it ${off ? "on again" : "off"}`,
    });
    line.append(number(value));
    return line;
  });
  const sums = [sum("embedding", writers.embedding)];
  if (writers.put_in) sums.push(sum("added by the changes", writers.put_in));
  if (Math.abs(writers.rest) >= 0.005) sums.push(sum("biases, and what is neither head nor MLP", writers.rest));
  return [...rows, ...sums, sum("logit, in total", writers.total)];
}

/**
 * @param {string} name
 * @param {number} value
 */
function sum(name, value) {
  return make("div", { class: "hx-line hx-sum" }, name, number(signed(value)));
}

/**
 * @param {StatesView} v
 * @param {number} layer
 * @param {number} column
 */
function writerName(v, layer, column) {
  return `layer ${layer} ${column === v.heads ? "MLP" : `head ${column}`}`;
}

/**
 * @param {StatesView} v
 * @param {number} layer
 * @param {number} column
 */
function isOff(v, layer, column) {
  return v.ablated.some(([l, h]) => l === layer && h === column);
}
