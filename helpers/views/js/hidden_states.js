// The page side of hidden_state_explorer (helpers/views/hidden_states.py).
// It draws the dict `view` and sends the reader's actions; it decides nothing and loads nothing.

import { cellPanel } from "./hidden_states/cell.js";
import { changesPanel } from "./hidden_states/changes.js";
import { Grids } from "./hidden_states/grids.js";
import { COLORINGS } from "./hidden_states/layouts.js";
import { nextPanel } from "./hidden_states/next.js";
import { promptBox, windowBar } from "./hidden_states/prompts.js";
import { saveGrids } from "./hidden_states/saving.js";
import { WritersMap } from "./hidden_states/writers.js";
import { connect, listen } from "./kernel.js";
import { button, make } from "./page.js";

const NAMES = { "": "nothing", other: "the second prompt", changed: "the changed model" };
const MARGINS = 30; // CSS pixels left and right of the grids

/** @param {import("@anywidget/types").RenderProps<{ view: StatesView }>} props */
function render({ model, el }) {
  const view = () => model.get("view");
  const link = connect(model);
  const page = { view, send: link.send };
  const parts = panels(page, () => (root.clientWidth || 900) - MARGINS);
  const { grids, message } = parts;
  const saving = /** @type {const} */ (["png", "svg"]).map((kind) =>
    button(kind.toUpperCase(), () => save(kind), {
      class: `hx-${kind}`,
      "aria-label": `Save the grids as ${kind.toUpperCase()}`,
    }),
  );
  const root = layout(parts, saving);
  link.page = { root, message };
  el.append(root);

  /** @param {"png" | "svg"} kind */
  function save(kind) {
    const title = `${view().title} (colour: ${COLORINGS[grids.coloring]})`;
    return saveGrids(kind, grids.panels, title, root);
  }

  function update() {
    link.answered();
    drawPanels(parts, view());
    link.goOn();
  }

  const unlisten = listen(model, { "change:view": update });
  let width = 0; // drawing changes the height, so only another width is a reason to draw again
  const resized = new ResizeObserver(() => {
    if (root.clientWidth !== width) grids.draw();
    width = root.clientWidth;
  });
  update();
  resized.observe(root);
  return () => {
    link.answered();
    resized.disconnect();
    unlisten();
  };
}

/** @typedef {ReturnType<typeof panels>} Panels */

/**
 * @param {{ view: () => StatesView, send: Send }} page
 * @param {() => number} room CSS pixels for the grids
 */
function panels(page, room) {
  const { send } = page;
  const beside = make("select", { class: "hx-beside", onchange: () => send("beside", { what: beside.value }) });
  return {
    typed: promptBox("hx-prompt", { label: "Prompt", placeholder: "the prompt", action: "Run" }, (text) =>
      send("type", { text }),
    ),
    second: promptBox(
      "hx-second",
      { label: "Second prompt", placeholder: "a second prompt to compare with (optional)", action: "Compare" },
      (text) => send("compare_with", { text }),
    ),
    message: make("div", { class: "hx-message", role: "alert" }),
    beside,
    shownPart: windowBar(page),
    grids: new Grids(page.view, send, room),
    cell: cellPanel(send),
    writers: new WritersMap(page.view, send),
    changes: changesPanel(page),
    next: nextPanel(send),
    spoken: make("div", { class: "hx-spoken", "aria-live": "polite" }),
  };
}

/**
 * @param {Panels} parts
 * @param {HTMLElement[]} saving
 */
function layout(parts, saving) {
  const { grids, cell } = parts;
  return make(
    "div",
    { class: "hx hx-states", role: "region", "aria-label": "Hidden state explorer" },
    parts.typed.row,
    parts.second.row,
    parts.message,
    make(
      "div",
      { class: "hx-bar" },
      make("label", {}, "colour: ", grids.colors),
      make("label", {}, "beside it: ", parts.beside),
      make("span", { class: "hx-space" }),
      ...saving,
    ),
    parts.shownPart.node,
    ...grids.nodes,
    make("div", { class: "hx-columns" }, cell.says, parts.writers.node, cell.near),
    make("div", { class: "hx-columns hx-lower" }, parts.changes.node, parts.next.node),
    parts.spoken,
  );
}

/**
 * @param {Panels} parts
 * @param {StatesView} v
 */
function drawPanels(parts, v) {
  parts.message.textContent = v.message;
  if (!v.message) {
    // a prompt that cannot be run stays in its box
    parts.typed.fill(v.prompt);
    parts.second.fill(v.other);
  }
  parts.beside.replaceChildren(...v.choices.map((value) => make("option", { value }, NAMES[value])));
  parts.beside.value = v.beside;
  for (const part of [parts.cell, parts.writers, parts.changes, parts.next, parts.shownPart]) part.draw(v);
  parts.grids.update(v);
  const best = v.candidates[0];
  parts.spoken.textContent = `Next: ${best.label} ${best.text.join(", with the changes ")}.`;
}

export default { render };
