import assert from "node:assert/strict";
import { test } from "node:test";

import {
  cellOf,
  columnWidth,
  HEAD,
  layouts,
  ROW,
  SIDE,
  scaleOf,
  shades,
} from "../../helpers/views/js/hidden_states/layouts.js";
import { cellInWords } from "../../helpers/views/js/hidden_states/reading.js";

/**
 * A grid of two layers by two positions.
 *
 * @param {string} name
 * @param {string[][] | null} says
 */
function grid(name, says) {
  const numbers = [
    [1, 10],
    [100, null],
  ];
  const lens = says ? numbers : null;
  return {
    name,
    first: 3,
    length: 5,
    tokens: ["a", "b"],
    says,
    probability: lens,
    entropy: lens,
    norm: numbers,
    change: numbers,
    cosine: numbers,
  };
}

/** @param {Record<string, unknown>} [more] */
function view(more = {}) {
  const says = [
    ["x", "y"],
    ["y", "y"],
  ];
  return /** @type {StatesView} */ (
    /** @type {unknown} */ ({
      grids: [grid("prompt", says)],
      difference: null,
      most_entropy: 4,
      colors: ["#000000", "#ffffff"],
      differences: ["#ff0000", "#ffffff", "#0000ff"],
      no_lens: "",
      ...more,
    })
  );
}

const DIFFERENCE = {
  first: 4,
  tokens: ["b", "c"],
  tokens_before: ["b", "·something"],
  says: [
    ["=", "z"],
    ["=", "="],
  ],
  token: [
    [0, 0.5],
    [1, 0.25],
  ],
  norm: [
    [0, -2],
    [1, null],
  ],
};

test("a grid is coloured by the predicted token, or by a value", () => {
  const [byToken] = layouts(view(), "token");
  assert.equal(byToken.values, null);
  assert.deepEqual(byToken.texts[1], ["y", "y"]);
  const [byNorm] = layouts(view(), "norm");
  assert.deepEqual(byNorm.values, view().grids[0].norm);
});

test("the difference comes last, and names both tokens where they differ", () => {
  const two = view({ grids: [grid("prompt", [["x"]]), grid("second prompt", [["x"]])], difference: DIFFERENCE });
  const all = layouts(two, "norm");
  assert.deepEqual(
    all.map(({ name, kind, grid }) => [name, kind, grid]),
    [
      ["prompt", "norm", 0],
      ["second prompt", "norm", 1],
      ["difference", "difference", 1],
    ],
  );
  assert.deepEqual(all[2].tokens, ["b", "·some…→c"]);
  assert.deepEqual(layouts(two, "token")[2].values, DIFFERENCE.token);
  assert.equal(layouts(two, "token")[2].kind, "apart");
});

test("without a lens the cells are empty and the other colours work", () => {
  const [bare] = layouts(view({ grids: [grid("prompt", null)] }), "norm");
  assert.deepEqual(bare.texts, [
    ["", ""],
    ["", ""],
  ]);
  assert.equal(shades(view({ grids: [grid("prompt", null)] })).size, 0);
});

test("each kind of value has its scale", () => {
  const v = view();
  const scale = (/** @type {GridLayout["kind"]} */ kind) => {
    const found = scaleOf(kind, v, layouts(v, "norm"));
    return found && [found.low, found.high];
  };
  assert.equal(scale("token"), null);
  assert.deepEqual(scale("probability"), [0, 1]);
  assert.deepEqual(scale("entropy"), [0, 4]);
  assert.deepEqual(scale("norm"), [0, 2], "powers of ten");
  assert.deepEqual(scale("cosine"), [-1, 1]);
  assert.deepEqual(scale("difference"), [-100, 100], "0 is in the middle");
});

test("the tokens said most have a colour each, the answer first", () => {
  assert.deepEqual([...shades(view()).keys()], ["y"]);
});

test("a place in the drawing is a cell of the grid, layers from the bottom up", () => {
  const panel = /** @type {GridPanel} */ ({ ...layouts(view(), "norm")[0], wide: 50 });
  assert.deepEqual(cellOf(panel, SIDE + 60, HEAD + 1), { grid: 0, layer: 1, position: 4 });
  assert.deepEqual(cellOf(panel, SIDE + 1, HEAD + ROW + 1), { grid: 0, layer: 0, position: 3 });
  for (const [x, y] of [
    [SIDE - 1, HEAD + 1],
    [SIDE + 1, HEAD - 1],
    [SIDE + 101, HEAD + 1],
    [SIDE + 1, HEAD + 2 * ROW],
  ]) {
    assert.equal(cellOf(panel, x, y), null);
  }
});

test("columns share the room there is", () => {
  const [one] = layouts(view(), "norm");
  assert.equal(columnWidth([one], 1000), 84);
  assert.equal(columnWidth([one, one], 1000), 62);
  assert.equal(columnWidth([{ ...one, tokens: Array(90).fill("a") }], 800), 42);
});

test("a cell is read out with what is known of it", () => {
  const v = view();
  const [panel] = layouts(v, "norm");
  assert.equal(
    cellInWords(v, panel, { layer: 0, position: 4 }),
    "layer 0, position 4 b: predicts y; probability 10, entropy 10, norm 10, change 10",
  );
  const bare = view({ grids: [grid("prompt", null)] });
  const words = cellInWords(bare, layouts(bare, "cosine")[0], { layer: 1, position: 3 });
  assert.equal(words, "layer 1, position 3 a: probability –, entropy –, norm 100, change 100; cosine 100");
});
