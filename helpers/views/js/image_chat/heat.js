// Where a word looked: a grey veil over the picture that is clear where the attention is largest.

import { frame, sharpContext } from "../canvas.js";
import { largest, ramp } from "../color.js";
import { arrow, take } from "../input.js";
import { clamp, group, make } from "../page.js";
import { percent } from "../words.js";

const SMALLEST = 1e-9;
const MOMENTS = { choosing: "when the word was chosen", reading: "when it was read back" };
/** @type {[string, number][]} */
const MOST_FRAME = [
  ["#ffffff", 4],
  ["#D55E00", 2.5],
];
/** @type {[string, number][]} */
const SPOT_FRAME = [
  ["#000000", 4],
  ["#ffffff", 2],
];

export class Heat {
  /** @type {[number, number] | null} */
  spot = null; // row and column of the patch being read
  layers = choice("Layer", () => this.look());
  heads = choice("Head", () => this.look());
  moments = choice("Moment", () => this.look(), MOMENTS);
  told = make("div", { class: "hx-told" });
  bar = make("span", { class: "hx-colors" });
  most = make("span");
  reading = make("div", { class: "hx-reading", "aria-live": "polite" });

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {number} size the picture's side, in CSS pixels
   * @param {{ view: () => ChatView, still: () => ChatStill, send: Send }} page
   */
  constructor(canvas, size, page) {
    this.canvas = canvas;
    this.size = size;
    this.page = page;
    const choices = [make("label", {}, "layer ", this.layers), make("label", {}, "head ", this.heads), this.moments];
    const scale = make("div", { class: "hx-scale" }, make("span", {}, "0%"), this.bar, this.most);
    const bars = [make("div", { class: "hx-bar" }, ...choices), scale];
    this.node = group("hx-looked", "Where the word looked", this.told, ...bars, this.reading);
  }

  look() {
    const number = (/** @type {HTMLSelectElement} */ box) => (box.value === "" ? null : Number(box.value));
    const { layers, heads, moments } = this;
    this.page.send("look", { layer: number(layers), head: number(heads), moment: moments.value });
  }

  forget() {
    this.spot = null;
  }

  /**
   * @param {boolean} isShown
   * @param {string} otherwise the label of the canvas when there is no heat map
   */
  draw(isShown, otherwise) {
    const context = sharpContext(this.canvas, this.size, this.size);
    const { heat, brightest } = this.page.view();
    this.node.hidden = !isShown;
    if (!isShown || !heat || !brightest) {
      this.canvas.setAttribute("aria-label", otherwise);
      return;
    }
    const top = Math.max(largest(heat.flat()), SMALLEST);
    this.paint(context, heat, top);
    this.framePatch(context, brightest, MOST_FRAME);
    if (this.spot) this.framePatch(context, this.spot, SPOT_FRAME);
    this.drawChoices();
    this.write(heat, brightest, top);
  }

  drawChoices() {
    const { word, share, shares, layer, head, moment } = this.page.view();
    const { layers, heads } = this.page.still();
    this.told.replaceChildren("“", make("b", {}, word), `” gave ${percent(share)} of its attention to the picture`);
    fillChoice(this.layers, layers, layer, String);
    fillChoice(this.heads, heads, head, (number) => `${number} (${percent(shares[number])} on the picture)`);
    this.moments.value = moment;
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {number[][]} rows
   * @param {number} top
   */
  paint(context, rows, top) {
    const { colors, grid } = this.page.still();
    const side = this.size / grid;
    for (const [y, row] of rows.entries()) {
      for (const [x, value] of row.entries()) {
        context.fillStyle = colors[Math.round((value / top) * (colors.length - 1))];
        context.fillRect(x * side, y * side, side + 0.4, side + 0.4);
      }
    }
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {[number, number]} patch
   * @param {[string, number][]} lines
   */
  framePatch(context, [row, column], lines) {
    const side = this.size / this.page.still().grid;
    frame(context, [column * side + 1, row * side + 1, side - 2, side - 2], lines);
  }

  /**
   * @param {number[][]} heat
   * @param {[number, number]} brightest
   * @param {number} top
   */
  write(heat, brightest, top) {
    const { colors, grid } = this.page.still();
    this.bar.style.background = ramp(colors);
    this.most.textContent = `${percent(top)} of the attention on one patch`;
    const [row, column] = this.spot ?? brightest;
    const note = this.spot ? "" : " (the largest)";
    this.reading.textContent = `row ${row}, column ${column}: ${percent(heat[row][column])}${note}`;
    const where = `Largest at row ${brightest[0]}, column ${brightest[1]}. Arrow keys read single patches.`;
    const what = `Attention of “${this.page.view().word}” to ${grid} by ${grid} patches.`;
    this.canvas.setAttribute("aria-label", `${what} ${where}`);
  }

  /**
   * Read the patch at a point, given as fractions of the picture.
   *
   * @param {number} x
   * @param {number} y
   */
  readAt(x, y) {
    const { grid } = this.page.still();
    this.spot = [clamp(Math.floor(y * grid), 0, grid - 1), clamp(Math.floor(x * grid), 0, grid - 1)];
  }

  /**
   * Read the next patch in the direction of an arrow key. Returns whether the key was one.
   *
   * @param {KeyboardEvent} event
   */
  step(event) {
    const by = arrow(event);
    const from = this.spot ?? this.page.view().brightest;
    if (!by || !from) return false;
    const { grid } = this.page.still();
    this.spot = [clamp(from[0] + by.down, 0, grid - 1), clamp(from[1] + by.across, 0, grid - 1)];
    take(event);
    return true;
  }
}

/**
 * @param {string} label
 * @param {() => void} look
 * @param {Record<string, string>} [entries]
 */
function choice(label, look, entries = {}) {
  const options = Object.entries(entries).map(([value, text]) => make("option", { value }, text));
  return make("select", { "aria-label": label, onchange: look }, ...options);
}

/**
 * Fill a box with a choice between the mean of all and each single one.
 *
 * @param {HTMLSelectElement} box
 * @param {number} count
 * @param {number | null} chosen
 * @param {(number: number) => string} name
 */
function fillChoice(box, count, chosen, name) {
  const each = [...Array(count).keys()].map((value) => make("option", { value }, name(value)));
  box.replaceChildren(make("option", { value: "" }, "mean of all"), ...each);
  box.value = chosen === null ? "" : String(chosen);
}
