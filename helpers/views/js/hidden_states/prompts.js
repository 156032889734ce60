// The boxes for the two prompts, and which part of a long one is shown.

import { isComposing, onEnter } from "../input.js";
import { button, clamp, group, make } from "../page.js";

const MOST_ROWS = 6; // rows of a box

/**
 * A box for a text, one row per line. An unchanged text is sent as it was received, since boxes rewrite "\r".
 *
 * @param {string} name
 * @param {{ label: string, placeholder: string, action: string }} words
 * @param {(text: string) => void} run
 */
export function promptBox(name, { label, placeholder, action }, run) {
  const input = make("textarea", {
    class: `hx-typed ${name}`,
    rows: 1,
    "aria-label": label,
    placeholder,
    title: "Enter runs, Shift+Enter starts a new line",
    oninput: fit,
    onkeydown: breakLine,
  });
  let came = "";
  let shown = "";

  function fit() {
    input.rows = Math.min(MOST_ROWS, input.value.split("\n").length);
  }

  /**
   * Done by hand, because Lab suppresses the line break that Shift+Enter would insert.
   *
   * @param {KeyboardEvent} event
   */
  function breakLine(event) {
    if (event.key !== "Enter" || !event.shiftKey || isComposing(event)) return;
    event.preventDefault();
    input.setRangeText("\n", input.selectionStart, input.selectionEnd, "end");
    fit();
  }

  const go = () => run(input.value === shown ? came : input.value);
  onEnter(input, go);
  return {
    row: make("div", { class: "hx-write" }, input, button(action, go, { class: `${name}-run` })),
    /** @param {string} text */
    fill(text) {
      input.value = text;
      [came, shown] = [text, input.value];
      fit();
    },
  };
}

/** @param {{ view: () => StatesView, send: Send }} page */
export function windowBar({ view, send }) {
  const earlier = button("← earlier", () => move(1), { class: "hx-earlier" });
  const later = button("later →", () => move(-1), { class: "hx-later" });
  const part = make("span", { class: "hx-where" });
  const node = group("hx-bar", "Part of the prompt", earlier, part, later);

  /** @param {1 | -1} way */
  function move(way) {
    const { size, after, farthest } = view().window;
    const step = Math.floor((2 * size) / 3); // a third stays visible
    send("window", { after: clamp(after + way * step, 0, farthest) });
  }

  return {
    node,
    /** @param {StatesView} v */
    draw(v) {
      const { after, farthest } = v.window;
      node.style.display = farthest ? "" : "none";
      part.textContent = v.grids
        .map((grid) => {
          const name = v.grids.length > 1 ? `${grid.name}: ` : "";
          return `${name}positions ${grid.first} to ${grid.first + grid.tokens.length - 1} of ${grid.length}`;
        })
        .join("; ");
      earlier.disabled = after >= farthest;
      later.disabled = after === 0;
    },
  };
}
