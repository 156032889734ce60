// The page side of sharpen_heads (helpers/views/sharpen.py).
// It draws the dict `view` and sends the slider's value; it decides nothing and loads nothing.

function render({ model, el }) {
  const view = () => model.get("view");
  const link = connect(model);
  const output = make("output");
  const [coldest, hottest] = view().limits.map(Math.log10);
  const slider = make("input", {
    type: "range", min: coldest, max: hottest, step: 0.01, "data-name": "temperature",
    oninput: () => {
      const temperature = 10 ** slider.valueAsNumber;
      output.textContent = temperature.toPrecision(2);
      link.send("change", { temperature });
    },
  });
  const name = `temperature of heads ${view().heads}`;
  slider.setAttribute("aria-label", name);
  const parts = make("div", { class: "hx-controls" });
  const message = make("div", { class: "hx-message", role: "alert" });
  const key = (kind, text) => [make("span", { class: `hx-key hx-${kind}`, "aria-hidden": "true" }), text];
  const root = make("div", { class: "hx", role: "region", "aria-label": "Temperature of attention heads" },
    make("div", { class: "hx-controls" }, make("label", {}, make("span", {}, name), slider, output)),
    make("div", { class: "hx-stages" }, ...key("raw", "as it is "), ...key("final", "changed")), parts, message);
  link.page = { root, message };
  el.append(root);

  function bar(kind, share) {
    const fill = make("span", { class: `hx-fill hx-${kind}` });
    fill.style.width = `${100 * share}%`;
    return make("span", { class: "hx-track" }, fill);
  }

  function update() {
    link.answered();
    const v = view();
    message.textContent = v.message;
    parts.replaceChildren(...v.parts.map((part) => make("div", { class: "hx-candidates" },
      make("strong", {}, part.name),
      ...part.rows.map(([label, before, after, beforeText, afterText]) => {
        const row = make("div", { class: "hx-row", role: "img", "aria-label": `${label}: ${beforeText}, changed ${afterText}` },
          make("span", { class: "hx-label" }, make("span", { class: "hx-chip" }, label)),
          make("span", { class: "hx-bars" }, bar("raw", before), bar("final", after)),
          make("span", { class: "hx-number hx-rawtext" }, beforeText), make("span", { class: "hx-number" }, afterText));
        row.style.gridTemplateColumns = "120px 1fr 52px 52px";
        return row;
      }))));
    if (!link.pending()) {
      slider.value = Math.log10(v.temperature);
      output.textContent = v.temperature.toPrecision(2);
    }
    link.goOn();
  }

  model.on("change:view", update);
  update();
  return () => {
    link.answered();
    model.off("change:view", update);
  };
}

export default { render };
