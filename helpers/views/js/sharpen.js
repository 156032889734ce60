// The page side of sharpen_heads (helpers/views/sharpen.py).
// It draws the dict `view` and sends the slider's value; it decides nothing and loads nothing.

import { connect, listen } from "./kernel.js";
import { bar, make } from "./page.js";

/** @param {import("@anywidget/types").RenderProps<{ view: SharpenView }>} props */
function render({ model, el }) {
  const view = () => model.get("view");
  const link = connect(model);
  const {
    slider,
    output,
    node: control,
  } = temperatureSlider(view(), (temperature) => link.send("change", { temperature }));
  const parts = make("div", { class: "hx-controls" });
  const message = make("div", { class: "hx-message", role: "alert" });
  const root = make(
    "div",
    { class: "hx", role: "region", "aria-label": "Temperature of attention heads" },
    control,
    make("div", { class: "hx-stages" }, ...key("raw", "as trained "), ...key("final", "at this temperature")),
    parts,
    message,
  );
  link.page = { root, message };
  el.append(root);

  function update() {
    link.answered();
    const v = view();
    message.textContent = v.message;
    parts.replaceChildren(
      ...v.parts.map((part) =>
        make("div", { class: "hx-candidates" }, make("strong", {}, part.name), ...part.rows.map(beforeAndAfter)),
      ),
    );
    if (!link.pending()) {
      slider.value = String(Math.log10(v.temperature));
      output.textContent = v.temperature.toPrecision(2);
    }
    link.goOn();
  }

  const unlisten = listen(model, { "change:view": update });
  update();
  return () => {
    link.answered();
    unlisten();
  };
}

/**
 * A slider over powers of ten.
 *
 * @param {SharpenView} view
 * @param {(temperature: number) => void} change
 */
function temperatureSlider(view, change) {
  const [coldest, hottest] = view.limits.map(Math.log10);
  const name = `temperature of heads ${view.heads}`;
  const output = make("output");
  const slider = make("input", {
    type: "range",
    min: coldest,
    max: hottest,
    step: 0.01,
    "data-name": "temperature",
    "aria-label": name,
    oninput: () => {
      const temperature = 10 ** slider.valueAsNumber;
      output.textContent = temperature.toPrecision(2);
      change(temperature);
    },
  });
  const label = make("label", {}, make("span", {}, name), slider, output);
  return { slider, output, node: make("div", { class: "hx-controls" }, label) };
}

/**
 * @param {string} kind
 * @param {string} text
 */
function key(kind, text) {
  return [make("span", { class: `hx-key hx-${kind}`, "aria-hidden": "true" }), text];
}

/** @param {SharpenView["parts"][number]["rows"][number]} row */
function beforeAndAfter([label, before, after, beforeText, afterText]) {
  const about = { class: "hx-row", role: "img", "aria-label": `${label}: ${beforeText}, changed ${afterText}` };
  const row = make(
    "div",
    about,
    make("span", { class: "hx-label" }, make("span", { class: "hx-chip" }, label)),
    make("span", { class: "hx-bars" }, bar(before, "hx-raw"), bar(after, "hx-final")),
    make("span", { class: "hx-number hx-rawtext" }, beforeText),
    make("span", { class: "hx-number" }, afterText),
  );
  row.style.gridTemplateColumns = "120px 1fr 52px 52px";
  return row;
}

export default { render };
