import assert from "node:assert/strict";
import { test } from "node:test";

import { settingInWords } from "../../helpers/views/js/explorer/sliders.js";
import { cornersOf } from "../../helpers/views/js/image_chat/board.js";

test("a shape is its outline at its place and size", () => {
  const outlines = {
    square: /** @type {[number, number][]} */ ([
      [1, 1],
      [-1, 1],
      [-1, -1],
      [1, -1],
    ]),
  };
  const corners = cornersOf({ kind: "square", color: "#000", x: 0.5, y: 0.25, size: 0.1 }, outlines);
  assert.deepEqual(corners[0], [0.6, 0.35]);
  assert.equal(corners.length, 4);
});

test("a stroke runs through its points, and a single touch can be seen", () => {
  const points = /** @type {[number, number][]} */ ([
    [0.1, 0.2],
    [0.3, 0.4],
  ]);
  assert.deepEqual(cornersOf({ kind: "pen", color: "#000", points }, {}), points);
  const touch = cornersOf({ kind: "pen", color: "#000", points: points.slice(0, 1) }, {});
  assert.equal(touch.length, 2);
  assert.notDeepEqual(touch[0], touch[1]);
});

test("a setting that changes nothing is said to be off", () => {
  assert.equal(settingInWords({ name: "top_k", neutral: 0 }, 0), "off");
  assert.equal(settingInWords({ name: "top_p", neutral: 1 }, 1), "1 (off)");
  assert.equal(settingInWords({ name: "temperature", neutral: 1 }, 0.55), "0.55");
});
