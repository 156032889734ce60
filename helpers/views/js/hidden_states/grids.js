// The grids side by side: drawing them, reading them with pointer and keys, and scrolling them together.

import { arrow, isChoice, pointer, take } from "../input.js";
import { clamp, make } from "../page.js";
import { drawGrid, frameCell } from "./grid.js";
import { COLORINGS, cellOf, columnWidth, layouts, SIDE, scaleOf, shades } from "./layouts.js";
import { cellInWords, legend } from "./reading.js";

const OF_THE_LENS = ["token", "probability", "entropy"]; // colourings that need a logit lens

/** The grids of one page: their colours, and the cell that the keyboard is at. */
export class Grids {
  /** @type {GridPanel[]} */
  panels = [];
  /** @type {Coloring} */
  coloring = "token";
  cursor = { grid: 0, layer: 0, position: 0 };
  box = make("div", { class: "hx-grids" });
  legendRow = make("div", { class: "hx-legend" });
  reading = make("div", { class: "hx-reading", "aria-live": "polite" });

  /**
   * @param {() => StatesView} view
   * @param {Send} send
   * @param {() => number} room the available width, in CSS pixels
   */
  constructor(view, send, room) {
    this.view = view;
    this.send = send;
    this.room = room;
    const options = Object.entries(COLORINGS).map(([value, text]) => make("option", { value }, text));
    this.colors = make("select", { class: "hx-coloring", onchange: () => this.recolor() }, ...options);
    this.nodes = [this.box, this.legendRow, this.reading];
  }

  recolor() {
    this.coloring = /** @type {Coloring} */ (this.colors.value);
    this.draw();
  }

  /** @param {StatesView} v */
  update(v) {
    Object.assign(this.cursor, { grid: v.cell.grid, layer: v.cell.layer, position: v.cell.position });
    this.draw();
  }

  draw() {
    const v = this.view();
    this.offerColorings(v);
    const { coloring } = this;
    const all = layouts(v, coloring);
    const scale = scaleOf(
      coloring,
      v,
      all.filter((grid) => grid.kind === coloring),
    );
    const tints = shades(v);
    const wide = columnWidth(all, this.room());
    this.panels = all.map((grid) => {
      const own = grid.kind === coloring ? scale : scaleOf(grid.kind, v, [grid]);
      const svg = drawGrid(grid, { wide, scale: own, tints, coloring });
      return this.listen({ ...grid, wide, scale: own, svg });
    });
    this.replace();
    this.legendRow.replaceChildren(...legend(v, this.panels, { coloring, scale, tints }));
    this.look(false);
  }

  /**
   * Without a lens there are no predictions to colour the cells by.
   *
   * @param {StatesView} v
   */
  offerColorings(v) {
    for (const option of this.colors.options)
      option.disabled = Boolean(v.no_lens) && OF_THE_LENS.includes(option.value);
    if (!this.colors.selectedOptions[0]?.disabled) return;
    this.coloring = this.colors.value = "norm";
  }

  /**
   * @param {GridPanel} panel
   * @returns {GridPanel}
   */
  listen(panel) {
    const { svg } = panel;
    svg.addEventListener("keydown", (event) => this.move(event, panel));
    svg.addEventListener("pointermove", (event) => {
      const place = placeAt(event, panel);
      if (place) this.reading.textContent = cellInWords(this.view(), panel, place);
    });
    svg.addEventListener("pointerleave", () => this.look(false));
    svg.addEventListener("pointerdown", (event) => {
      const place = placeAt(event, panel);
      if (!place) return;
      Object.assign(this.cursor, place);
      this.look(true);
    });
    return panel;
  }

  /** Replace the old drawings with the new ones, keeping focus and scroll position. */
  replace() {
    const { box, panels } = this;
    const fromEnd = box.children.length ? endOf(box.children[0]) : 0;
    const focused = [...box.querySelectorAll("svg")].indexOf(/** @type {SVGSVGElement} */ (document.activeElement));
    const onscroll = (/** @type {Event} */ event) => this.scrolled(/** @type {Element} */ (event.target));
    box.replaceChildren(...panels.map((panel) => make("div", { class: "hx-grid", onscroll }, panel.svg)));
    this.scrollAll(fromEnd);
    if (focused >= 0) panels[Math.min(focused, panels.length - 1)].svg.focus({ preventScroll: true });
  }

  /** @param {Element} grid */
  scrolled(grid) {
    grid.querySelector(".hx-side")?.setAttribute("transform", `translate(${grid.scrollLeft} 0)`);
    this.scrollAll(endOf(grid), grid);
  }

  /**
   * All grids scroll together, matched from the end.
   *
   * @param {number} fromEnd
   * @param {Element} [already]
   */
  scrollAll(fromEnd, already) {
    for (const grid of this.box.children) {
      if (grid === already || Math.abs(endOf(grid) - fromEnd) <= 1) continue;
      grid.scrollLeft = grid.scrollWidth - grid.clientWidth - fromEnd;
    }
  }

  /**
   * @param {KeyboardEvent} event
   * @param {GridPanel} panel
   */
  move(event, panel) {
    const { cursor } = this;
    const [first, last] = [panel.first, panel.first + panel.tokens.length - 1];
    const top = panel.texts.length - 1;
    if (cursor.grid !== panel.grid) {
      Object.assign(cursor, { grid: panel.grid, position: clamp(cursor.position, first, last) });
    }
    const step = arrow(event);
    if (step) {
      cursor.layer = clamp(cursor.layer - step.down, 0, top);
      cursor.position = clamp(cursor.position + step.across, first, last);
    } else if (event.key === "Home") cursor.position = first;
    else if (event.key === "End") cursor.position = last;
    else if (event.key === "PageUp") cursor.layer = top;
    else if (event.key === "PageDown") cursor.layer = 0;
    else if (!isChoice(event)) return;
    take(event);
    this.look(isChoice(event));
  }

  /**
   * Move the frames to the cursor.
   *
   * @param {boolean} ask whether the kernel should inspect the cell
   */
  look(ask) {
    for (const panel of this.panels) {
      if (!frameCell(panel, this.cursor)) continue;
      this.reading.textContent = cellInWords(this.view(), panel, this.cursor);
      scrollTo(panel, this.cursor.position);
    }
    if (ask) this.send("look", { ...this.cursor });
  }
}

/**
 * @param {PointerEvent} event
 * @param {GridPanel} panel
 */
function placeAt(event, panel) {
  const grid = /** @type {Element} */ (panel.svg.parentNode);
  if (pointer(event, grid).x < SIDE) return null; // on the layers' numbers
  const { x, y } = pointer(event, panel.svg);
  return cellOf(panel, x, y);
}

/**
 * Scroll a grid so that a position is visible.
 *
 * @param {GridPanel} panel
 * @param {number} position
 */
function scrollTo(panel, position) {
  const grid = /** @type {Element} */ (panel.svg.parentNode);
  const x = SIDE + (position - panel.first) * panel.wide;
  if (x < grid.scrollLeft + SIDE) grid.scrollLeft = x - SIDE;
  else if (x + panel.wide > grid.scrollLeft + grid.clientWidth) grid.scrollLeft = x + panel.wide - grid.clientWidth;
}

/** @param {Element} box */
function endOf(box) {
  return box.scrollWidth - box.clientWidth - box.scrollLeft;
}
