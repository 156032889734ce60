// The next token before and after the changes, and a short continuation.

import { largest } from "../color.js";
import { bar, button, group, make } from "../page.js";
import { number } from "./cell.js";

/** @param {Send} send */
export function nextPanel(send) {
  const title = make("h4");
  const rows = group("hx-list hx-candidates", "Next token");
  const texts = make("div", { class: "hx-texts", "aria-live": "polite" });
  const writeOn = button("Continue →", () => send("write_on"), { class: "hx-writeon" });
  return {
    node: make("section", {}, title, rows, make("div", { class: "hx-bar" }, writeOn), texts),
    /** @param {StatesView} v */
    draw(v) {
      const isChanged = v.changes.length > 0;
      title.replaceChildren(
        "Next token",
        ...(isChanged ? [": ", dot("before"), "before ", dot("after"), "with the changes"] : []),
      );
      const most = largest(v.candidates.flatMap((row) => row.p)) || 1;
      rows.replaceChildren(...v.candidates.map((row) => candidate(row, most, isChanged)));
      texts.replaceChildren(
        ...v.texts.map((text, at) => {
          const name = at ? "changed: " : isChanged ? "before: " : "";
          return make("div", { class: "hx-text" }, make("b", {}, name), `… ${text.trim()}`);
        }),
      );
    },
  };
}

/** @param {string} name */
function dot(name) {
  return make("span", { class: `hx-dot hx-dot-${name}`, "aria-hidden": "true" });
}

/**
 * @param {Candidate} row
 * @param {number} most
 * @param {boolean} isChanged
 */
function candidate({ label, p, text }, most, isChanged) {
  const words = isChanged ? ` before, ${text[1]} with the changes` : "";
  const bars = [bar(p[0] / most, isChanged ? "var(--muted)" : "var(--blue)")];
  if (isChanged) bars.push(bar(p[1] / most, "var(--vermillion)"));
  const about = {
    class: `hx-line ${isChanged ? "hx-two" : ""}`,
    role: "img",
    "aria-label": `${label}: ${text[0]}${words}`,
  };
  return make(
    "div",
    about,
    make("span", { class: "hx-chip" }, label),
    make("span", { class: "hx-bars" }, ...bars),
    ...text.map(number),
  );
}
