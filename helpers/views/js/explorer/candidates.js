// The candidates for the next token, each with its bars before and after the processors.

import { bar, button, group, make } from "../page.js";

/**
 * @param {((token_id: number) => void) | null} choose takes a candidate; null if none can be taken
 */
export function candidateList(choose) {
  const node = group("hx-candidates", "Candidates for the next token");
  return {
    node,
    /** @param {ExplorerView} v */
    draw(v) {
      const widest = Math.max(...v.candidates.map((row) => Math.max(row.raw ?? 0, row.final ?? 0)), 1e-9);
      const focused = [...node.children].indexOf(/** @type {Element} */ (document.activeElement));
      node.replaceChildren(...v.candidates.map((row) => candidateRow(row, widest, choose)));
      const row = node.children[Math.min(focused, node.children.length - 1)];
      if (focused >= 0 && row instanceof HTMLElement) row.focus();
    },
  };
}

/**
 * @param {ExplorerView["candidates"][number]} row
 * @param {number} widest
 * @param {((token_id: number) => void) | null} choose
 */
function candidateRow(row, widest, choose) {
  const isGone = row.final === null;
  const parts = [
    make("span", { class: "hx-mark", "aria-hidden": "true" }, row.chosen ? "➤" : isGone ? "✕" : ""),
    make("span", { class: "hx-label" }, make("span", { class: "hx-chip" }, row.label)),
    make("span", { class: "hx-id" }, String(row.id)),
    make(
      "span",
      { class: "hx-bars" },
      probability("hx-raw", row.raw, widest),
      probability("hx-final", row.final, widest),
    ),
    make("span", { class: "hx-number hx-rawtext" }, row.rawText),
    make("span", { class: "hx-number" }, row.finalText),
  ];
  const name = `hx-row${row.chosen ? " hx-chosen" : ""}${isGone ? " hx-gone" : ""}`;
  const words = `raw ${row.rawText}, after the processors ${row.finalText}${row.chosen ? ", taken" : ""}`;
  const about = `${row.label}, ${words}`;
  if (!choose) return make("div", { class: name, role: "img", "aria-label": about }, ...parts);
  const node = button("", () => choose(row.id), { class: name, "aria-label": `${about}. Take this token` });
  node.append(...parts);
  return node;
}

/**
 * @param {string} kind
 * @param {number | null} share
 * @param {number} widest
 */
function probability(kind, share, widest) {
  return bar((share ?? 0) / widest, kind);
}
