// One cell: the tokens it predicts, and the cells that are most similar.

import { bar, button, group, make } from "../page.js";

/** @param {Send} send */
export function cellPanel(send) {
  const sayTitle = make("h4");
  const says = group("hx-list hx-top", "Ten best tokens of this cell");
  const nearTitle = make("h4");
  const near = group("hx-list hx-near", "Most similar cells of this layer");

  /** @param {StatesCell} cell */
  function drawSays(cell) {
    sayTitle.textContent = `Predicted at layer ${cell.layer}, position ${cell.position} ${cell.token}`;
    if (!cell.top.length) {
      says.replaceChildren(make("p", { class: "hx-why" }, cell.no_top));
      return;
    }
    const most = cell.top[0].p;
    says.replaceChildren(
      ...cell.top.map((row) => {
        const ask = () =>
          send("look", { grid: cell.grid, layer: cell.layer, position: cell.position, token_id: row.id });
        const line = button("", ask, {
          class: "hx-line",
          "aria-pressed": String(row.id === cell.asked.id),
          "aria-label": `${row.label}, ${row.text}: who wrote it?`,
          title: `id ${row.id}: ask who wrote it`,
        });
        line.append(make("span", { class: "hx-chip" }, row.label), bar(row.p / most, "var(--blue)"), number(row.text));
        return line;
      }),
    );
  }

  /**
   * @param {StatesCell} cell
   * @param {StatesGrid[]} grids
   */
  function drawNear(cell, grids) {
    nearTitle.textContent = `Most similar in layer ${cell.layer}`;
    const centred = make(
      "span",
      { class: "hx-number", title: "after subtracting the mean over all cells of this layer" },
      "centred",
    );
    const head = make("div", { class: "hx-line hx-headline" }, make("span"), number("cosine"), centred);
    near.replaceChildren(
      head,
      ...cell.neighbours.map((row) => {
        const words = `cosine ${row.cosine}, centred ${row.centred}`;
        const line = button("", () => send("look", { grid: row.grid, layer: cell.layer, position: row.position }), {
          class: "hx-line",
          "aria-label": `position ${row.position} ${row.label}, ${words}`,
        });
        const where = ` ${row.position}${row.grid ? `, ${grids[row.grid].name}` : ""}`;
        const name = make("span", {}, make("span", { class: "hx-chip" }, row.label), make("small", {}, where));
        line.append(name, number(row.cosine.toFixed(3)), number(row.centred.toFixed(3)));
        return line;
      }),
    );
  }

  return {
    says: make("section", {}, sayTitle, says),
    near: make("section", {}, nearTitle, near),
    /** @param {StatesView} v */
    draw(v) {
      drawSays(v.cell);
      drawNear(v.cell, v.grids);
    },
  };
}

/** @param {string} text */
export function number(text) {
  return make("span", { class: "hx-number" }, text);
}
