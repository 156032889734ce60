import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { connect, listen, PATIENCE } from "../../helpers/views/js/kernel.js";

/** A model as anywidget hands it to a page, and a page that can be busy. */
function connected() {
  const send = mock.fn();
  const model = /** @type {any} */ ({ send, on: mock.fn(), off: mock.fn() });
  const link = connect(model);
  const state = { busy: "" };
  const root = {
    setAttribute: (/** @type {string} */ _name, /** @type {string} */ value) => {
      state.busy = value;
    },
  };
  const message = { textContent: "" };
  link.page = /** @type {any} */ ({ root, message });
  const wishes = () => send.mock.calls.map((call) => call.arguments[0]);
  return { link, model, state, message, wishes };
}

test("one wish at a time; of slider movements meanwhile the last one is kept", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const { link, state, wishes } = connected();
  link.send("forward");
  assert.equal(state.busy, "true");
  link.send("back");
  link.send("change", { scale: 1 });
  link.send("change", { scale: 2 });
  assert.deepEqual(wishes(), [{ command: "forward" }]);
  assert.ok(link.pending());
  link.answered();
  assert.equal(state.busy, "false");
  link.goOn();
  assert.deepEqual(wishes(), [{ command: "forward" }, { command: "change", scale: 2 }]);
  assert.ok(!link.pending());
  link.answered();
  link.goOn();
  assert.equal(wishes().length, 2);
  mock.timers.reset();
});

test("a kernel that does not answer is named, and the next wish is sent", () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const { link, state, message, wishes } = connected();
  link.send("forward");
  mock.timers.tick(PATIENCE - 1);
  assert.equal(message.textContent, "");
  mock.timers.tick(1);
  assert.match(message.textContent, /No answer from the kernel/);
  assert.equal(state.busy, "false");
  link.send("back");
  assert.deepEqual(wishes().at(-1), { command: "back" });
  link.answered();
  mock.timers.reset();
});

test("listeners are taken off again", () => {
  const { model } = connected();
  const update = () => {};
  listen(model, { "change:view": update })();
  assert.deepEqual(model.on.mock.calls[0].arguments, ["change:view", update]);
  assert.deepEqual(model.off.mock.calls[0].arguments, ["change:view", update]);
});
