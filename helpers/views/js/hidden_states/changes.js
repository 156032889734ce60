// Changes to the model: those that are possible at a cell, and those that have been made.

import { onEnter } from "../input.js";
import { button, group, make } from "../page.js";

/** @param {{ view: () => StatesView, send: Send }} page */
export function changesPanel({ view, send }) {
  const actions = group("hx-bar hx-actions", "Change the model at this cell");
  const towards = textBox("Steer towards this text", "towards: I love it");
  const away = textBox("Steer away from this text", "away from: I hate it");
  const steer = button("", steering, { class: "hx-steer" });
  const changes = group("hx-changes", "Changes to the model");
  const code = make("code", { class: "hx-code" });
  for (const input of [towards, away]) onEnter(input, steering);

  function steering() {
    send("steer", { layer: view().cell.layer, towards: towards.value, away: away.value, scale: 1 });
  }

  /** @param {StatesCell} cell */
  function drawActions({ layer, patch }) {
    const writer = Math.max(0, layer - 1); // the layer whose output this row is
    const skip = (/** @type {string} */ text, /** @type {string} */ part) =>
      button(text, () => send("skip", { layer: writer, part }), { class: `hx-skip-${part}` });
    actions.replaceChildren(
      skip(`Skip layer ${writer}`, "layer"),
      skip("its attention", "attention"),
      skip("its MLP", "mlp"),
    );
    if (patch) {
      const words = `Patch ${patch.token} (${patch.position}) at layer ${layer} from the second prompt`;
      actions.append(button(words, () => send("patch", { layer, position: patch.position }), { class: "hx-patch" }));
    }
    steer.textContent = `Steer at layer ${layer}`;
  }

  /** @param {StatesView} v */
  function drawChanges(v) {
    const active = document.activeElement;
    const isHeld = active instanceof HTMLInputElement && active.type === "range" && changes.contains(active);
    if (isHeld && changes.children.length === v.changes.length) return; // keep a slider that is being moved
    changes.replaceChildren(
      ...v.changes.map((change, index) => {
        const parts = change.scale === null ? [] : slider(index, change.text, change.scale, v.strength);
        const about = { class: "hx-remove", "aria-label": `Undo: ${change.text}`, title: "undo" };
        const remove = button("✕", () => send("remove", { index }), about);
        return make("div", { class: "hx-changed" }, make("span", { class: "hx-what" }, change.text), ...parts, remove);
      }),
    );
  }

  /**
   * @param {number} index
   * @param {string} text
   * @param {number} scale
   * @param {number} strength
   */
  function slider(index, text, scale, strength) {
    const output = make("output", {}, String(scale));
    const input = make("input", {
      type: "range",
      min: -strength,
      max: strength,
      step: 0.25,
      "aria-label": `Strength: ${text}`,
      oninput: () => {
        output.textContent = input.value;
        send("change", { index, scale: input.valueAsNumber });
      },
    });
    input.value = String(scale);
    return [input, output];
  }

  return {
    node: make(
      "section",
      { class: "hx-change" },
      make("h4", {}, "Change something"),
      actions,
      make("div", { class: "hx-bar hx-steering" }, towards, away, steer),
      changes,
      code,
    ),
    /** @param {StatesView} v */
    draw(v) {
      drawActions(v.cell);
      drawChanges(v);
      code.textContent = v.code;
    },
  };
}

/**
 * @param {string} label
 * @param {string} placeholder
 */
function textBox(label, placeholder) {
  return make("input", { type: "text", "aria-label": label, placeholder });
}
