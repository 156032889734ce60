import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { arrow, isChoice, isComposing, onEnter, pointer, take } from "../../helpers/views/js/input.js";

/** @param {Record<string, unknown>} about */
function key(about) {
  return /** @type {any} */ (Object.assign(new Event("keydown", { cancelable: true }), about));
}

test("Enter acts, unless Shift is held or an input method composes", () => {
  const input = new EventTarget();
  const act = mock.fn();
  onEnter(input, act);
  const plain = key({ key: "Enter" });
  input.dispatchEvent(plain);
  assert.equal(act.mock.callCount(), 1);
  assert.ok(plain.defaultPrevented);
  for (const other of [
    { key: "Enter", shiftKey: true },
    { key: "Enter", isComposing: true },
    { key: "Enter", keyCode: 229 }, // as Safari tells of the Enter that ends a composition
    { key: "a" },
  ]) {
    const event = key(other);
    input.dispatchEvent(event);
    assert.ok(!event.defaultPrevented, JSON.stringify(other));
  }
  assert.equal(act.mock.callCount(), 1);
});

test("arrows have a direction, other keys have none", () => {
  assert.deepEqual(arrow(key({ key: "ArrowUp" })), { across: 0, down: -1 });
  assert.deepEqual(arrow(key({ key: "ArrowRight" })), { across: 1, down: 0 });
  for (const name of ["b", "Enter", "constructor"]) assert.ok(!Object.hasOwn(arrow(key({ key: name })) ?? {}, "down"));
  assert.deepEqual(
    ["Enter", " ", "x"].map((name) => isChoice(key({ key: name }))),
    [true, true, false],
  );
  assert.deepEqual([key({ isComposing: true }), key({ keyCode: 13 })].map(isComposing), [true, false]);
});

test("an event that was used goes nowhere else", () => {
  const event = key({ key: "a" });
  const stopped = mock.method(event, "stopPropagation");
  take(event);
  assert.ok(event.defaultPrevented);
  assert.equal(stopped.mock.callCount(), 1);
});

test("a pointer is placed in the element it is over", () => {
  const element = { getBoundingClientRect: () => ({ left: 10, top: 20, width: 100, height: 50 }) };
  const place = pointer({ clientX: 15, clientY: 45 }, /** @type {Element} */ (/** @type {unknown} */ (element)));
  assert.deepEqual(place, { x: 5, y: 25, width: 100, height: 50 });
});
