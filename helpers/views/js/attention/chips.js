// The tokens as chips, tinted by attention. A patch of a picture has no chip.

import { button, make } from "../page.js";
import { ends } from "./reading.js";
import { focus, focusPosition } from "./scene.js";

/**
 * @param {AttentionView} view
 * @param {{ choose: (position: number) => void, onkeydown: (event: KeyboardEvent) => void }} page
 */
export function chipRow(view, { choose, onkeydown }) {
  /** @type {Map<number, HTMLButtonElement>} */
  const chips = new Map();
  view.tokens.forEach((label, position) => {
    if ((view.patches?.[position] ?? -1) >= 0) return;
    const about = { title: `position ${position}`, "aria-label": `${label}, position ${position}` };
    chips.set(
      position,
      button(label, () => choose(position), { class: "hx-chip", tabindex: -1, ...about }),
    );
  });
  const attributes = { class: "hx-chips", role: "group", "aria-label": "Tokens; arrow keys move", onkeydown };
  const node = make("div", attributes, ...chips.values());
  return {
    node,
    /** @param {number} position */
    focus: (position) => chips.get(position)?.focus(),
    /** @param {Scene} scene */
    draw(scene) {
      const { side } = focus(scene);
      const mine = focusPosition(scene);
      const stop = chips.has(mine) ? mine : chips.keys().next().value; // a patch has no chip: the first one
      const weights = new Map(ends(scene).map(([weight, position]) => [position, weight]));
      for (const [position, chip] of chips) {
        chip.style.background = background(side, weights.get(position) ?? 0);
        const isChosen = position === mine;
        if (chip.classList.contains("hx-here") !== isChosen) chip.classList.toggle("hx-here", isChosen);
        chip.tabIndex = position === stop ? 0 : -1;
      }
    },
  };
}

/**
 * @param {Side} side
 * @param {number} weight
 */
function background(side, weight) {
  if (weight <= 0.0005) return "";
  return `color-mix(in srgb, var(--${side}) ${Math.round(75 * Math.sqrt(weight))}%, var(--paper))`;
}
