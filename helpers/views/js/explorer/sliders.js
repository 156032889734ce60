// Sliders for the settings, and the processors that they turn on.

import { group, make } from "../page.js";

const SAMPLING_ONLY = ["temperature", "top_k", "top_p"];

/** @typedef {ExplorerView["sliders"][number]} Slider */

/**
 * @param {(settings: Record<string, number>) => void} change
 * @param {() => boolean} isPending whether a slider movement is still waiting
 */
export function sliderList(change, isPending) {
  const node = group("hx-controls", "Settings");
  /** @type {Map<string, { input: HTMLInputElement, output: HTMLOutputElement, label: HTMLLabelElement }>} */
  const sliders = new Map();

  /** @param {Slider} slider */
  function sliderOf(slider) {
    const known = sliders.get(slider.name);
    if (known) return known;
    const output = make("output");
    const { min, max, step, name } = slider;
    const input = make("input", {
      type: "range",
      min,
      max,
      step,
      "data-name": name,
      "aria-label": name,
      oninput: () => {
        output.textContent = settingInWords(slider, input.valueAsNumber);
        change({ [name]: input.valueAsNumber });
      },
    });
    const made = { input, output, label: make("label", {}, make("span", {}, name), input, output) };
    sliders.set(name, made);
    node.append(made.label);
    return made;
  }

  return {
    node,
    /** @param {ExplorerView} v */
    draw(v) {
      for (const slider of v.sliders) {
        const { input, output, label } = sliderOf(slider);
        input.disabled = v.kind === "stepper" && !v.sampling && SAMPLING_ONLY.includes(slider.name);
        const why = "No effect while the most likely token is taken: turn on sampling.";
        label.title = input.disabled ? why : "";
        if (document.activeElement === input && isPending()) continue;
        input.value = String(slider.value);
        output.textContent = settingInWords(slider, slider.value);
      }
    },
  };
}

/**
 * @param {{ name: string, neutral: number }} slider
 * @param {number} value
 */
export function settingInWords({ name, neutral }, value) {
  if (value === neutral) return name === "top_k" ? "off" : `${value} (off)`;
  return String(Math.round(value * 100) / 100);
}

/** The processors in use, in words. */
export function stageRow() {
  const node = make("div", { class: "hx-stages" });
  return {
    node,
    /** @param {ExplorerView} v */
    draw(v) {
      node.replaceChildren(
        make("span", { class: "hx-key hx-raw", "aria-hidden": "true" }),
        "raw",
        make("span", { class: "hx-key hx-final", "aria-hidden": "true" }),
        "after the processors: ",
        v.stages.join(" → ") || "none in use",
      );
    },
  };
}
