// The page side of kv_cache_explorer (helpers/views/cache.py).
// It draws the dict `view` and sends the reader's actions; it decides nothing and loads nothing.

import { frame, sharpContext } from "./canvas.js";
import { largest, ramp } from "./color.js";
import { arrow, pointer, take } from "./input.js";
import { connect, listen } from "./kernel.js";
import { button, clamp, group, make } from "./page.js";

const WIDTH = 350; // width of one panel, in CSS pixels
const HEIGHT = 230;
const PARTS = /** @type {const} */ (["keys", "values"]);

/** @param {import("@anywidget/types").RenderProps<{ view: CacheView }>} props */
function render({ model, el }) {
  const view = () => model.get("view");
  const cursor = { layer: 0, position: 0 }; // the position counts from the beginning of the text
  const link = connect(model);
  const message = make("div", { class: "hx-message", role: "alert" });
  const spoken = make("div", { class: "hx-spoken", "aria-live": "polite" });
  const chips = group("hx-chips", "Positions in the cache");
  const steps = stepBar(link.send);
  const size = make("div", { class: "hx-text" });
  const reading = make("div", { class: "hx-reading", "aria-live": "polite" });
  const panels = PARTS.map((part) => heatPanel(part, { onkeydown: move, onpointermove: point, onpointerdown: point }));
  const root = make(
    "div",
    { class: "hx", role: "region", "aria-label": "KV cache explorer" },
    chips,
    steps.node,
    size,
    make("div", { class: "hx-panels" }, ...panels.map((panel) => panel.node)),
    reading,
    message,
    spoken,
  );
  link.page = { root, message };
  el.append(root);

  /** @param {KeyboardEvent} event */
  function move(event) {
    const v = view();
    const step = arrow(event);
    if (step) look(cursor.layer - step.down, cursor.position + step.across);
    else if (event.key === "Home") look(cursor.layer, v.first);
    else if (event.key === "End") look(cursor.layer, v.length - 1);
    else return;
    take(event);
  }

  /** @param {PointerEvent} event */
  function point(event) {
    const v = view();
    const { x, y, width, height } = pointer(event, /** @type {Element} */ (event.target));
    look(v.layers - 1 - Math.floor((y / height) * v.layers), v.first + Math.floor((x / width) * v.tokens.length));
  }

  /**
   * @param {number} layer
   * @param {number} position
   */
  function look(layer, position) {
    const v = view();
    cursor.layer = clamp(layer, 0, v.layers - 1);
    cursor.position = clamp(position, v.first, v.length - 1);
    const column = cursor.position - v.first;
    for (const panel of panels) panel.draw(v, cursor.layer, column);
    [...chips.children].forEach((chip, at) => {
      chip.classList.toggle("hx-here", at === column);
    });
    reading.textContent = cellInWords(v, cursor.layer, column);
  }

  function update() {
    link.answered();
    const v = view();
    message.textContent = v.message;
    chips.replaceChildren(
      ...v.tokens.map((token, at) => chip(token, v.first + at, () => look(cursor.layer, v.first + at))),
    );
    steps.draw(v);
    size.textContent = sizeInWords(v);
    spoken.textContent = `Step ${v.index}: ${v.length} positions, ${v.bytes} bytes.`;
    look(cursor.layer, cursor.position);
  }

  const unlisten = listen(model, { "change:view": update });
  update();
  return () => {
    link.answered();
    unlisten();
  };
}

/** @param {Send} send */
function stepBar(send) {
  const back = button("← Back", () => send("back"), { class: "hx-back" });
  const forward = button("", () => send("forward"), { class: "hx-next" });
  const where = make("span", { class: "hx-where" });
  return {
    node: make("div", { class: "hx-bar" }, back, forward, where),
    /** @param {CacheView} v */
    draw(v) {
      where.textContent = `step ${v.index}${v.last > v.index ? ` of ${v.last} so far` : ""}`;
      back.disabled = v.index === 0;
      forward.disabled = !v.forward;
      forward.textContent = v.forward ? `Feed ${v.token} →` : "The end";
    },
  };
}

/**
 * The norms of the keys or the values, with layers from the bottom up.
 *
 * @param {"keys" | "values"} part
 * @param {Attributes} listeners
 */
function heatPanel(part, listeners) {
  const canvas = make("canvas", { tabindex: 0, role: "img", class: `hx-${part}`, ...listeners });
  const bar = make("span");
  const most = make("span");
  const scale = make("div", { class: "hx-scale", "aria-hidden": "true" }, make("span", {}, "0"), bar, most);
  return {
    node: make("div", { class: "hx-panel" }, make("h4", {}, part), canvas, scale),
    /**
     * @param {CacheView} v
     * @param {number} layer
     * @param {number} column
     */
    draw(v, layer, column) {
      const context = sharpContext(canvas, WIDTH, HEIGHT);
      const [wide, high] = [WIDTH / v.tokens.length, HEIGHT / v.layers];
      const top = Math.max(largest(v[part].flat().map((value) => value ?? 0)), 1e-9);
      for (const [at, row] of v[part].entries()) {
        for (const [position, value] of row.entries()) {
          context.fillStyle = v.colors[Math.round(((value ?? 0) / top) * (v.colors.length - 1))];
          context.fillRect(position * wide, HEIGHT - (at + 1) * high, wide + 0.5, high + 0.5);
        }
      }
      const fresh = Math.min(v.fresh, v.tokens.length) * wide; // the columns that this step added
      frame(context, [WIDTH - fresh + 1, 1, fresh - 2, HEIGHT - 2], [["#D55E00", 2]]);
      const cell = /** @type {Box} */ ([column * wide + 1, HEIGHT - (layer + 1) * high, Math.max(wide - 2, 2), high]);
      frame(context, cell, [
        ["#000000", 4],
        ["#ffffff", 2],
      ]);
      bar.style.background = ramp(v.colors);
      most.textContent = `norm ${top.toFixed(1)}`;
      const words = `${v.layers} layers by ${v.tokens.length} positions`;
      canvas.setAttribute("aria-label", `Norms of the ${part}, ${words}. Arrow keys read single cells.`);
    },
  };
}

/**
 * @param {CacheView["tokens"][number]} token
 * @param {number} position
 * @param {() => void} look
 */
function chip(token, position, look) {
  const kind = `${token.step < 0 ? "" : "hx-by-model"}${token.special ? " hx-special" : ""}`;
  return button(token.label, look, {
    class: `hx-chip ${kind}`,
    title: `position ${position}, id ${token.id}`,
    "aria-label": `${token.label}, position ${position}: read its column`,
  });
}

/**
 * @param {CacheView} v
 * @param {number} layer
 * @param {number} column
 */
function cellInWords(v, layer, column) {
  const [key, value] = PARTS.map((part) => v[part][layer][column]?.toFixed(2) ?? "not held");
  return `layer ${layer}, position ${v.first + column} ${v.tokens[column].label}: key ${key}, value ${value}`;
}

/** @param {CacheView} v */
function sizeInWords(v) {
  const drawn = v.first ? `; positions ${v.first} to ${v.length - 1} are drawn` : "";
  return (
    `${v.length} positions (${v.fresh} new, framed), each layer's keys [${v.shape.join(", ")}], ` +
    `${v.bytes.toLocaleString("en")} bytes in all, ${v.growth.toLocaleString("en")} per position${drawn}`
  );
}

export default { render };
