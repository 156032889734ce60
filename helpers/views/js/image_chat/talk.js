// The conversation: questions and answers, and a box for the next question.

import { onEnter } from "../input.js";
import { button, group, make } from "../page.js";

/**
 * @param {Send} send
 * @param {{ ask: (text: string) => void, pick: (turn: number, word: number) => void, isBusy: () => boolean }} acts
 */
export function talkPanel(send, { ask, pick, isBusy }) {
  const log = make("div", { class: "hx-log", role: "log", "aria-label": "Conversation", tabindex: 0 });
  const typed = make("input", { type: "text", class: "hx-typed", "aria-label": "Your question", placeholder: "Ask …" });
  const askButton = button("Ask", askTyped, { class: "hx-next hx-ask" });
  const stop = button("Stop", () => send("stop"), { class: "hx-stop" });
  const again = button("New conversation", () => send("restart"), { class: "hx-again hx-restart" });
  const notice = make("div", { class: "hx-notice", role: "status" });
  const ideas = group("hx-bar hx-ideas", "Questions to start with");
  const writing = make("div", { class: "hx-write" }, typed, askButton, stop);
  const node = make("div", { class: "hx-right" }, log, ideas, writing, make("div", { class: "hx-bar" }, again, notice));
  onEnter(typed, askTyped);

  function askTyped() {
    const text = typed.value.trim();
    if (!text || isBusy()) return;
    typed.value = "";
    ask(text);
  }

  /** @param {ChatView} v */
  function drawLog(v) {
    const focused = /** @type {HTMLElement | null} */ (document.activeElement)?.dataset?.word;
    const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    log.setAttribute("aria-busy", String(v.answering));
    log.replaceChildren(...v.turns.flatMap((turn, at) => turnNodes(v, turn, at, pick)));
    if (!v.turns.length) log.append(make("div", { class: "hx-empty" }, v.sees ? FIRST_WORDS : "Ask something."));
    const word = focused && log.querySelector(`[data-word="${CSS.escape(focused)}"]`);
    if (word instanceof HTMLElement) word.focus();
    if (isAtEnd) log.scrollTop = log.scrollHeight;
  }

  return {
    node,
    /** @param {ChatStill} still */
    fill(still) {
      ideas.replaceChildren(...still.questions.map((text) => button(text, () => ask(text), { class: "hx-idea" })));
    },
    /** @param {ChatView} v */
    draw(v) {
      notice.textContent = v.notice;
      drawLog(v);
      askButton.hidden = v.answering;
      stop.hidden = !v.answering;
      again.disabled = v.answering || !v.turns.length;
      ideas.hidden = v.turns.length > 0;
    },
  };
}

const FIRST_WORDS = "Ask about the picture. Then click a word of the answer to see where it looked.";

/**
 * @param {ChatView} v
 * @param {ChatTurn} turn
 * @param {number} at
 * @param {(turn: number, word: number) => void} pick
 */
function turnNodes(v, turn, at, pick) {
  const withPicture = turn.fresh ? make("span", { class: "hx-with" }, "with the picture") : "";
  const asked = make("div", { class: "hx-asked" }, withPicture, make("span", { class: "hx-said" }, turn.question));
  const words = turn.words.length
    ? turn.words.map((word, number) => (word.pick ? wordButton(v, word.text, at, number, pick) : word.text))
    : [turn.text];
  const isLast = v.answering && at === v.turns.length - 1;
  return [asked, make("div", { class: "hx-answer" }, ...words, isLast ? caret() : ending(turn))];
}

/**
 * @param {ChatView} v
 * @param {string} text
 * @param {number} turn
 * @param {number} word
 * @param {(turn: number, word: number) => void} pick
 */
function wordButton(v, text, turn, word, pick) {
  const isPicked = v.picked?.[0] === turn && v.picked[1] === word;
  return button(text, () => pick(turn, word), {
    class: `hx-word${isPicked ? " hx-picked" : ""}`,
    "data-word": `${turn},${word}`,
    "aria-pressed": String(isPicked),
    "aria-label": `${text.trim()}: see where it looked`,
  });
}

function caret() {
  return make("span", { class: "hx-caret", "aria-hidden": "true" }, "▍");
}

/** @param {ChatTurn} turn */
function ending({ stopped }) {
  return stopped ? make("span", { class: "hx-ended" }, ` (${stopped})`) : "";
}
