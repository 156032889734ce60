import assert from "node:assert/strict";
import { test } from "node:test";

import { colorOf, isBright, largest, ramp, rgb, smallest, tint } from "../../helpers/views/js/color.js";
import { cut, percent, short, signed, threeDigits } from "../../helpers/views/js/words.js";

test("a label is cut where it no longer fits, and Chinese characters are twice as wide", () => {
  assert.equal(cut("·the", 4), "·the");
  assert.equal(cut("·theatre", 5), "·the…");
  assert.equal(cut("中国的首都", 6), "中国…");
  assert.equal(cut("中", 1), "…");
  assert.equal(cut("👩🏽‍💻x", 2), "…", "a character outside the first plane is never halved");
  assert.equal(short("theatre", 4), "the…");
  assert.equal(short("👩👩👩", 2), "👩…");
});

test("numbers are written for people", () => {
  assert.deepEqual([null, 0.12345, 123.4, -1000].map(threeDigits), ["–", "0.123", "123", "-1000"]);
  assert.deepEqual([1.234, -0.5].map(signed), ["+1.23", "−0.50"]);
  assert.deepEqual([0.001, 0.0995, 0.5].map(percent), ["0.1%", "10%", "50%"]);
});

test("a value has the colour of its place on the scale", () => {
  const scale = { low: 0, high: 2, colors: ["#000000", "#777777", "#ffffff"] };
  assert.deepEqual(
    [0, 1, 2, 99, -5, null].map((value) => colorOf(value, scale)),
    ["#000000", "#777777", "#ffffff", "#ffffff", "#000000", null],
  );
  assert.equal(colorOf(100, { ...scale, log: true }), "#ffffff");
  assert.equal(colorOf(3, { low: 3, high: 3, colors: ["#000000"] }), "#000000", "a scale of one value");
});

test("colours are taken apart, lightened, and judged by what can be read on them", () => {
  assert.deepEqual(rgb("#0072b2"), [0, 114, 178]);
  assert.equal(tint("#000000"), "#737373");
  assert.equal(tint("#ffffff"), "#ffffff");
  assert.deepEqual(["#ffffff", "#000000", "#f0e442"].map(isBright), [true, false, true]);
  assert.equal(ramp(["#000", "#fff"]), "linear-gradient(90deg, #000,#fff)");
  assert.deepEqual([largest([1, 3, 2]), smallest([1, 3, 2])], [3, 1]);
});
