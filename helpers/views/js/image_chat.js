// The page side of image_chat (helpers/views/image_chat.py).
// It draws the dict `view` and sends the reader's actions; only the drawing board lives here.

import { Stage } from "./image_chat/stage.js";
import { talkPanel } from "./image_chat/talk.js";
import { connect, listen } from "./kernel.js";
import { make } from "./page.js";

/** @param {import("@anywidget/types").RenderProps<{ view: ChatView, still: ChatStill, stage: string }>} props */
function render({ model, el }) {
  const view = () => model.get("view");
  const still = () => model.get("still");
  const link = connect(model);
  const { send } = link;
  const message = make("div", { class: "hx-message", role: "alert" });
  const spoken = make("div", { class: "hx-spoken", "aria-live": "polite" });
  const page = { view, still, source: () => model.get("stage"), send };
  const words = { say: say(spoken), refuse: say(message) };
  const stage = view().sees ? new Stage(page, words) : null;
  const talk = talkPanel(send, { ask, pick, isBusy: () => view().answering });
  const both = stage ? [make("div", { class: "hx-both" }, stage.node, talk.node), stage.heat.node] : [talk.node];
  const about = { class: "hx hx-chat", role: "region", "aria-label": "Chat about a picture" };
  const root = make("div", about, ...both, message, spoken);
  link.page = { root, message };
  el.append(root);

  /** @param {string} text */
  async function ask(text) {
    send("ask", { text }, (await stage?.newDrawing()) ?? []);
  }

  /**
   * @param {number} turn
   * @param {number} word
   */
  function pick(turn, word) {
    stage?.heat.forget();
    send("pick", { turn, word });
  }

  function heard() {
    link.answered();
    message.textContent = view().message;
    update();
  }

  function update() {
    if (view().answering) root.setAttribute("aria-busy", "true");
    talk.draw(view());
    stage?.draw();
  }

  const unlisten = listen(model, { "change:view": heard, "change:stage": update });
  talk.fill(still());
  heard();
  return () => {
    link.answered();
    unlisten();
  };
}

/**
 * @param {HTMLElement} where
 * @returns {(words: string) => void}
 */
function say(where) {
  return (words) => {
    where.textContent = words;
  };
}

export default { render };
