// What the stepper has in addition to the sampling explorer: the text so far, steps, and the reader's own choices.

import { onEnter } from "../input.js";
import { button, group, make } from "../page.js";

/** @type {Record<"prompt" | "you" | "model", string>} */
const FROM = { prompt: "the prompt", you: "you", model: "the model" };

/** @param {Send} send */
export function textSoFar(send) {
  const chips = group("hx-chips", "Tokens so far");
  const answer = make("div", { class: "hx-text" });
  return {
    nodes: [chips, answer],
    /** @param {ExplorerView} v */
    draw(v) {
      const open = { class: "hx-chip hx-open", title: "the token being chosen", "aria-hidden": "true" };
      chips.replaceChildren(...v.chips.map((chip) => chipOf(chip, send)), make("span", open, v.stopped ? "■" : "?"));
      answer.textContent = v.text ? `Answer so far: ${v.text}` : "No answer yet.";
    },
  };
}

/**
 * @param {ExplorerView["chips"][number]} chip
 * @param {Send} send
 */
function chipOf(chip, send) {
  const name = `hx-chip hx-by-${chip.by}${chip.special ? " hx-special" : ""}`;
  const about = `id ${chip.id}, from ${FROM[chip.by]}`;
  if (chip.by === "prompt") return make("span", { class: name, title: about }, chip.label);
  return button(chip.label, () => send("go_to", { index: chip.step }), {
    class: name,
    title: `${about}; go back to this step`,
    "aria-label": `${chip.label}, ${about}: go back to this step`,
  });
}

/** @param {Send} send */
export function stepBar(send) {
  const back = button("← Back", () => send("back"), { class: "hx-back" });
  const forward = button("", () => send("forward"), { class: "hx-next" });
  const where = make("span", { class: "hx-where" });
  const inputs = make("tbody");
  const summary = make("summary", {}, "What went into the model in this step");
  return {
    nodes: [
      make("div", { class: "hx-bar" }, back, forward, where),
      make("details", { class: "hx-inputs" }, summary, make("table", {}, inputs)),
    ],
    /** @param {ExplorerView} v */
    draw(v) {
      const made = v.last > v.index ? ` of ${v.last} so far` : "";
      where.textContent = `step ${v.index}${made}${v.stopped ? `: it stops here because of ${v.stopped}` : ""}`;
      back.disabled = v.index === 0;
      forward.disabled = !v.forward;
      forward.textContent = v.forward ? `Take ${v.token} →` : "The end";
      inputs.replaceChildren(
        ...v.inputs.map(([name, shape, content]) =>
          make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, shape), make("td", {}, content)),
        ),
      );
    },
  };
}

/** @param {Send} send */
export function ownChoices(send) {
  const typed = make("input", {
    type: "text",
    class: "hx-typed",
    "aria-label": "Write what comes next yourself",
    placeholder: "or write what comes next (begin with a space for a new word)",
  });
  const sampling = make("input", { type: "checkbox", onchange: () => send("change", { do_sample: sampling.checked }) });
  const again = button("Sample again", () => send("draw_again"), { class: "hx-again" });
  const check = make("label", { class: "hx-check" }, sampling, " sample (do_sample)");
  onEnter(typed, write);

  function write() {
    if (typed.value) send("write", { text: typed.value });
    typed.value = "";
  }

  return {
    nodes: [
      make("div", { class: "hx-write" }, typed, button("Take this", write)),
      make("div", { class: "hx-bar" }, check, again),
    ],
    /** @param {ExplorerView} v */
    draw(v) {
      sampling.checked = v.sampling;
      again.disabled = !v.sampling;
    },
  };
}
