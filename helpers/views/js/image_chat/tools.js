// The drawing tools: shapes, a pen, colours, sizes and positions.

import { button, group, make } from "../page.js";

/** @type {Record<string, string>} */
const SIGNS = { circle: "●", square: "■", triangle: "▲", star: "★", pen: "✎" };
/** @type {Record<string, number>} */
const SIZES = { small: 0.1, medium: 0.15, large: 0.21 };
const HINT = "pen: draw freely, a digit for example";

/**
 * @param {ChatStill} still
 * @param {ReturnType<typeof import("./board.js").newBoard>} board
 * @param {(words: string) => void} changed is told what was drawn, or "" when something was removed
 */
export function drawingTools(still, board, changed) {
  const tool = { kind: "circle", color: still.palette[0].color, size: "medium" };
  const pick = (/** @type {Partial<typeof tool>} */ change) => {
    Object.assign(tool, change);
    update();
  };
  const kinds = Object.entries(SIGNS).map(([kind, sign]) => {
    const about = { class: "hx-tool", "data-kind": kind, title: kind === "pen" ? HINT : kind, "aria-label": kind };
    return button(sign, () => pick({ kind }), about);
  });
  const colors = still.palette.map(({ name, color }) => {
    const about = { class: "hx-swatch", "data-color": color, title: name, "aria-label": name };
    const swatch = button("", () => pick({ color }), about);
    swatch.style.background = color;
    return swatch;
  });
  const sizes = choice("Size", Object.keys(SIZES), tool.size);
  sizes.addEventListener("change", () => pick({ size: sizes.value }));
  const places = choice("Place", still.places, "center");
  const add = button("", addShape, { class: "hx-add" });
  const undo = button("Undo", () => takeAway(1), { class: "hx-undo" });
  const clear = button("Clear", () => takeAway(board.marks.length), { class: "hx-clear" });

  function addShape() {
    const at = still.places.indexOf(places.value);
    board.marks.push(markAt(0.2 + 0.3 * (at % 3), 0.2 + 0.3 * Math.floor(at / 3)));
    const words = `${add.textContent?.replace("Add", "Added")}, ${places.value}. ${board.marks.length} on the sheet.`;
    changed(words);
  }

  /** @param {number} count */
  function takeAway(count) {
    board.marks.splice(board.marks.length - count, count);
    changed("");
  }

  /**
   * @param {number} x
   * @param {number} y
   * @returns {Mark}
   */
  function markAt(x, y) {
    if (tool.kind === "pen") return { kind: "pen", color: tool.color, points: [[x, y]] };
    return { kind: tool.kind, color: tool.color, size: SIZES[tool.size], x, y };
  }

  function update() {
    for (const each of kinds) each.setAttribute("aria-pressed", String(each.dataset.kind === tool.kind));
    for (const each of colors) each.setAttribute("aria-pressed", String(each.dataset.color === tool.color));
    const name = still.palette.find(({ color }) => color === tool.color)?.name;
    add.textContent = tool.kind === "pen" ? "The pen needs a pointer" : `Add a ${name} ${tool.kind}`;
    add.disabled = tool.kind === "pen";
    undo.disabled = clear.disabled = board.marks.length === 0;
  }

  const hint = make("span", { class: "hx-where" }, "or click on the sheet");
  const node = make(
    "div",
    { class: "hx-draw" },
    group("hx-bar", "Shape", ...kinds),
    group("hx-bar", "Colour", ...colors),
    make("div", { class: "hx-bar" }, sizes, places, add),
    make("div", { class: "hx-bar" }, undo, clear, hint),
  );
  return { node, update, markAt };
}

/**
 * @param {string} label
 * @param {string[]} values
 * @param {string} chosen
 */
function choice(label, values, chosen) {
  const options = values.map((value) => make("option", { selected: value === chosen }, value));
  return make("select", { "aria-label": label }, ...options);
}
