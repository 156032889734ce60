// The picture that the conversation is about: shown, drawn on, or overlaid with where a word looked.

import { pointer } from "../input.js";
import { button, group, make } from "../page.js";
import { newBoard } from "./board.js";
import { Heat } from "./heat.js";
import { galleryPanel, uploadPanel } from "./sources.js";
import { drawingTools } from "./tools.js";

const SIZE = 300; // side of the picture, in CSS pixels
const PAPER = 384; // side of a drawing, in pixels
const DRAWING = "your drawing";
const MODES = { choose: "Choose", upload: "Upload", draw: "Draw" };

/** @typedef {keyof typeof MODES} Mode */

export class Stage {
  /** @type {Mode} */
  mode = "choose";
  /** @type {Mark | null} */
  stroke = null; // what is being drawn with the pen

  /**
   * @param {{ view: () => ChatView, still: () => ChatStill, source: () => string, send: Send }} page
   * @param {{ say: (words: string) => void, refuse: (words: string) => void }} words
   */
  constructor(page, { say, refuse }) {
    this.page = page;
    this.shown = make("img", { class: "hx-shown", alt: "" });
    this.paper = make("canvas", { class: "hx-paper", width: PAPER, height: PAPER, "aria-hidden": "true" });
    this.canvas = make("canvas", { class: "hx-heat", tabindex: 0, role: "img", ...this.listeners() });
    this.board = newBoard(this.paper, () => page.still().outlines);
    this.heat = new Heat(this.canvas, SIZE, page);
    this.tools = drawingTools(page.still(), this.board, (words) => {
      say(words);
      this.redraw();
    });
    this.gallery = galleryPanel(page.still().gallery, (name) => {
      this.heat.forget();
      page.send("choose", { name });
    });
    this.panels = { choose: this.gallery.node, upload: uploadPanel(page.send, refuse).node, draw: this.tools.node };
    this.frame = make("div", { class: "hx-stage" }, this.shown, this.paper, this.canvas);
    this.caption = make("div", { class: "hx-caption" });
    this.modes = /** @type {[Mode, string][]} */ (Object.entries(MODES)).map(([name, text]) =>
      button(text, () => this.show(name), { class: "hx-mode", "data-mode": name }),
    );
    this.without = button("Ask without a picture", () => page.send("leave_out"), { class: "hx-without" });
    const modes = group("hx-bar hx-modes", "Where the picture comes from", ...this.modes);
    const panels = Object.values(this.panels);
    this.node = make("div", { class: "hx-left" }, this.frame, this.caption, modes, ...panels, this.without);
    this.board.draw();
  }

  /** @returns {Attributes} */
  listeners() {
    const lift = () => {
      this.stroke = null;
    };
    return {
      onkeydown: (event) => {
        if (this.isHeatShown() && this.heat.step(event)) this.drawHeat();
      },
      onpointermove: (event) => this.point(event),
      onpointerdown: (event) => this.press(event),
      onpointerup: lift,
      onpointercancel: lift,
    };
  }

  /**
   * The pointer's position on the picture, as fractions of its side.
   *
   * @param {PointerEvent} event
   * @returns {[number, number]}
   */
  place(event) {
    const { x, y, width, height } = pointer(event, this.canvas);
    return [x / width, y / height];
  }

  /** @param {PointerEvent} event */
  press(event) {
    if (this.mode !== "draw") {
      this.point(event);
      return;
    }
    const mark = this.tools.markAt(...this.place(event));
    if (mark.points) {
      this.stroke = mark;
      this.canvas.setPointerCapture(event.pointerId);
    }
    this.board.marks.push(mark);
    this.redraw();
  }

  /** @param {PointerEvent} event */
  point(event) {
    const place = this.place(event);
    if (this.stroke) {
      this.stroke.points?.push(place);
      this.redraw();
    } else if (this.isHeatShown()) {
      this.heat.readAt(...place);
      this.drawHeat();
    }
  }

  /** @param {Mode} mode */
  show(mode) {
    this.mode = mode;
    this.heat.forget();
    this.draw();
  }

  redraw() {
    this.board.isDirty = true;
    this.board.draw();
    this.draw();
  }

  /**
   * The drawing that goes with a question: the bytes of a PNG, if the model has not seen it yet.
   *
   * @returns {Promise<ArrayBuffer[]>}
   */
  async newDrawing() {
    if (this.mode !== "draw" || this.isDrawingShown()) return [];
    this.board.isDirty = false;
    return [await this.board.png()];
  }

  isDrawingShown() {
    return !this.board.isDirty && this.page.view().picture === DRAWING;
  }

  isHeatShown() {
    return this.page.view().heat !== null && (this.mode !== "draw" || this.isDrawingShown());
  }

  draw() {
    const { mode, shown } = this;
    const { picture } = this.page.view();
    const source = this.page.source();
    for (const each of this.modes) each.setAttribute("aria-pressed", String(each.dataset.mode === mode));
    for (const [name, panel] of Object.entries(this.panels)) panel.hidden = name !== mode;
    this.gallery.draw(picture);
    this.tools.update();
    this.paper.hidden = mode !== "draw";
    shown.hidden = mode === "draw" || !source;
    if (shown.src !== source) shown.src = source;
    shown.alt = picture;
    this.frame.classList.toggle("hx-drawing", mode === "draw");
    this.caption.textContent = mode === "draw" ? DRAWING : picture || "no picture";
    this.without.hidden = mode === "draw" || !picture;
    this.drawHeat();
  }

  drawHeat() {
    const drawing = "Your drawing. Shapes are added by the buttons below.";
    this.heat.draw(this.isHeatShown(), this.mode === "draw" ? drawing : (this.caption.textContent ?? ""));
  }
}
