// The page side of generation_stepper and sampling_explorer (helpers/views/widget.py).
// It draws the dict `view` and sends what the reader does; it decides nothing and loads nothing.

const SAMPLING_ONLY = ["temperature", "top_k", "top_p"];

function render({ model, el }) {
  const view = () => model.get("view");
  const link = connect(model);
  const { send, answered } = link;

  // Parts that stay; update() fills them.
  const message = make("div", { class: "hx-message", role: "alert" });
  const spoken = make("div", { class: "hx-spoken", "aria-live": "polite" });
  const chips = make("div", { class: "hx-chips", role: "group", "aria-label": "Tokens so far" });
  const answer = make("div", { class: "hx-text" });
  const back = make("button", { type: "button", class: "hx-back", onclick: () => send("back") }, "← Back");
  const forward = make("button", { type: "button", class: "hx-next", onclick: () => send("forward") });
  const where = make("span", { class: "hx-where" });
  const inputs = make("tbody");
  const stages = make("div", { class: "hx-stages" });
  const candidates = make("div", { class: "hx-candidates", role: "group", "aria-label": "Candidates for the next token" });
  const controls = make("div", { class: "hx-controls", role: "group", "aria-label": "Settings" });
  const sliders = {};

  const sampling = make("input", {
    type: "checkbox",
    onchange: () => send("change", { do_sample: sampling.checked }),
  });
  const again = make("button", { type: "button", class: "hx-again", onclick: () => send("draw_again") }, "Draw again");
  const typed = make("input", {
    type: "text", class: "hx-typed", "aria-label": "Write what comes next yourself",
    placeholder: "or write what comes next (begin with a space for a new word)",
  });
  const write = () => {
    if (typed.value) send("write", { text: typed.value });
    typed.value = "";
  };
  // While an input method composes (Chinese), Enter belongs to it.
  typed.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing) write();
  });
  const writing = make("div", { class: "hx-write" }, typed,
    make("button", { type: "button", onclick: write }, "Take this"));

  const stepper = view().kind === "stepper";
  const root = make(
    "div",
    { class: "hx", role: "region", "aria-label": stepper ? "Generation stepper" : "Sampling explorer" },
  );
  link.page = { root, message };
  if (stepper) {
    root.append(
      chips, answer,
      make("div", { class: "hx-bar" }, back, forward, where),
      make("details", { class: "hx-inputs" },
        make("summary", {}, "What went into the model in this step"),
        make("table", {}, inputs)),
    );
  }
  root.append(stages, candidates);
  if (stepper) root.append(writing, make("div", { class: "hx-bar" },
    make("label", { class: "hx-check" }, sampling, " sample (do_sample)"), again));
  root.append(controls, message, spoken);
  el.append(root);

  function drawChips(v) {
    chips.replaceChildren(...v.chips.map((chip) => {
      const special = chip.special ? " hx-special" : "";
      const name = `hx-chip hx-by-${chip.by}${special}`;
      const about = `id ${chip.id}, from ${chip.by === "prompt" ? "the prompt" : chip.by === "you" ? "you" : "the model"}`;
      if (chip.by === "prompt") return make("span", { class: name, title: about }, chip.label);
      return make("button", {
        type: "button", class: name, title: `${about}; go back to this step`,
        "aria-label": `${chip.label}, ${about}: go back to this step`,
        onclick: () => send("go_to", { index: chip.step }),
      }, chip.label);
    }), make("span", { class: "hx-chip hx-open", title: "the token being chosen", "aria-hidden": "true" }, v.stopped ? "■" : "?"));
  }

  function drawCandidates(v) {
    const widest = Math.max(...v.candidates.map((c) => Math.max(c.raw || 0, c.final || 0)), 1e-9);
    const bar = (kind, p) => {
      const fill = make("span", { class: `hx-fill hx-${kind}` });
      fill.style.width = `${(100 * (p || 0)) / widest}%`;
      return make("span", { class: "hx-track" }, fill);
    };
    const focused = [...candidates.children].indexOf(document.activeElement);
    candidates.replaceChildren(...v.candidates.map((c) => {
      const gone = c.final === null;
      const parts = [
        make("span", { class: "hx-mark", "aria-hidden": "true" }, c.chosen ? "➤" : gone ? "✕" : ""),
        make("span", { class: "hx-label" }, make("span", { class: "hx-chip" }, c.label)),
        make("span", { class: "hx-id" }, String(c.id)),
        make("span", { class: "hx-bars" }, bar("raw", c.raw), bar("final", c.final)),
        make("span", { class: "hx-number hx-rawtext" }, c.rawText),
        make("span", { class: "hx-number" }, c.finalText),
      ];
      const name = `hx-row${c.chosen ? " hx-chosen" : ""}${gone ? " hx-gone" : ""}`;
      const about = `${c.label}, raw ${c.rawText}, after the processors ${c.finalText}${c.chosen ? ", taken" : ""}`;
      return stepper
        ? make("button", { type: "button", class: name, "aria-label": `${about}. Take this token`,
            onclick: () => send("choose", { token_id: c.id }) }, ...parts)
        : make("div", { class: name, role: "img", "aria-label": about }, ...parts);
    }));
    if (focused >= 0) candidates.children[Math.min(focused, candidates.children.length - 1)].focus();
  }

  function drawSliders(v) {
    for (const s of v.sliders) {
      if (!sliders[s.name]) {
        const output = make("output");
        const input = make("input", {
          type: "range", min: s.min, max: s.max, step: s.step, "data-name": s.name, "aria-label": s.name,
          oninput: () => {
            output.textContent = show(s, input.valueAsNumber);
            send("change", { [s.name]: input.valueAsNumber });
          },
        });
        sliders[s.name] = { input, output, label: make("label", {}, make("span", {}, s.name), input, output) };
        controls.append(sliders[s.name].label);
      }
      const { input, output, label } = sliders[s.name];
      const idle = stepper && !v.sampling && SAMPLING_ONLY.includes(s.name);
      input.disabled = idle;
      label.title = idle ? "No part in it while the most likely token is taken: turn on sampling." : "";
      if (document.activeElement !== input || !link.pending()) {
        input.value = s.value;
        output.textContent = show(s, s.value);
      }
    }
  }

  function show(slider, value) {
    if (value === slider.neutral) return slider.name === "top_k" ? "off" : `${value} (off)`;
    return String(Math.round(value * 100) / 100);
  }

  function update() {
    answered();
    const v = view();
    message.textContent = v.message;
    drawCandidates(v);
    drawSliders(v);
    stages.replaceChildren(
      make("span", { class: "hx-key hx-raw", "aria-hidden": "true" }), "raw",
      make("span", { class: "hx-key hx-final", "aria-hidden": "true" }), "after the processors: ",
      v.stages.join(" → ") || "none in use");
    if (stepper) {
      drawChips(v);
      answer.textContent = v.text ? `Answer so far: ${v.text}` : "No answer yet.";
      where.textContent = `step ${v.index}` + (v.last > v.index ? ` of ${v.last} made` : "") +
        (v.stopped ? `: it stops here, by ${v.stopped}` : "");
      back.disabled = v.index === 0;
      forward.disabled = !v.forward;
      forward.textContent = v.forward ? `Take ${v.token} →` : "The end";
      sampling.checked = v.sampling;
      again.disabled = !v.sampling;
      inputs.replaceChildren(...v.inputs.map(([name, shape, content]) =>
        make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, shape), make("td", {}, content))));
      spoken.textContent = `Step ${v.index}. Taken: ${v.token}. ${v.stopped ? "It stops here." : ""}`;
    }
    link.goOn();
  }

  model.on("change:view", update);
  update();
  return () => {
    answered();
    model.off("change:view", update);
  };
}

export default { render };
