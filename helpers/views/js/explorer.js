// The page side of generation_stepper and sampling_explorer (helpers/views/stepper.py, sampling.py).
// It draws the dict `view` and sends the reader's actions; it decides nothing and loads nothing.

import { candidateList } from "./explorer/candidates.js";
import { sliderList, stageRow } from "./explorer/sliders.js";
import { ownChoices, stepBar, textSoFar } from "./explorer/steps.js";
import { connect, listen } from "./kernel.js";
import { make } from "./page.js";

/** @param {import("@anywidget/types").RenderProps<{ view: ExplorerView }>} props */
function render({ model, el }) {
  const view = () => model.get("view");
  const link = connect(model);
  const { send } = link;
  const isStepper = view().kind === "stepper";
  const message = make("div", { class: "hx-message", role: "alert" });
  const spoken = make("div", { class: "hx-spoken", "aria-live": "polite" });
  const candidates = candidateList(isStepper ? (token_id) => send("choose", { token_id }) : null);
  const sliders = sliderList((settings) => send("change", settings), link.pending);
  const stages = stageRow();
  const steps = isStepper ? [textSoFar(send), stepBar(send)] : [];
  const own = isStepper ? [ownChoices(send)] : [];
  const name = isStepper ? "Generation stepper" : "Sampling explorer";
  const root = make(
    "div",
    { class: "hx", role: "region", "aria-label": name },
    ...steps.flatMap((part) => part.nodes),
    stages.node,
    candidates.node,
    ...own.flatMap((part) => part.nodes),
    sliders.node,
    message,
    spoken,
  );
  link.page = { root, message };
  el.append(root);

  function update() {
    link.answered();
    const v = view();
    message.textContent = v.message;
    for (const part of [candidates, sliders, stages, ...steps, ...own]) part.draw(v);
    if (isStepper) spoken.textContent = `Step ${v.index}. Taken: ${v.token}. ${v.stopped ? "It stops here." : ""}`;
    link.goOn();
  }

  const unlisten = listen(model, { "change:view": update });
  update();
  return () => {
    link.answered();
    unlisten();
  };
}

export default { render };
