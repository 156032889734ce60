import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { deflateSync } from "node:zlib";

import { layerStore } from "../../helpers/views/js/attention/layers.js";
import { labelled, labelText, lineY } from "../../helpers/views/js/attention/lines.js";
import { dragged } from "../../helpers/views/js/attention/matrix.js";
import { enlarge, planeName, reveal, wholeArea } from "../../helpers/views/js/attention/scene.js";
import { enlarged, square, strongest, weightOf, written } from "../../helpers/views/js/attention/weights.js";

const VIEW = { tokens: ["a", "b", "c"], queries: [0, 2], planes: ["0", "1", "mean"], layers: [4, 5] };

test("a layer that travelled as a triangle becomes a square, with the mean over heads", () => {
  const packed = Uint8Array.of(255, 10, 20, 30, 0, 40, 50, 60); // head 0: queries 0 and 2, then head 1
  const bytes = square(packed, VIEW);
  assert.deepEqual([...bytes.subarray(0, 6)], [255, 0, 0, 10, 20, 30]);
  assert.deepEqual([...bytes.subarray(6, 12)], [0, 0, 0, 40, 50, 60]);
  const mean = [...bytes.subarray(12)].map((byte) => weightOf(byte));
  assert.ok(Math.abs(mean[0] - 0.5) < 0.01, "bytes are roots of weights: their squares are averaged");
  assert.equal(mean[1], 0);
});

test("a small picture is made as large as the plane, and the future stays empty", () => {
  const small = Uint8Array.of(1, 2, 3, 4, /* plane 1 */ 5, 6, 7, 8);
  const bytes = enlarged(small, 1, { ...VIEW, side: [2, 2] });
  assert.deepEqual([...bytes], [5, 0, 0, 7, 7, 8]);
});

test("faint lines are those of the largest weights, weak ones first", () => {
  const bytes = Uint8Array.of(255, 0, 200, 41, 39, 100);
  assert.deepEqual(strongest(bytes, 3, 3), [
    [100, 1, 2],
    [200, 0, 2],
    [255, 0, 0],
  ]);
  assert.equal(strongest(bytes, 3, 500).length, 4, "the weakest get none");
});

test("weights are written as long as they need", () => {
  assert.deepEqual([0.0001, 0.004, 0.25].map(written), ["0", "0.004", "0.25"]);
  assert.deepEqual(["3", "mean", "rollout"].map(planeName), ["head 3", "mean over heads", "rollout"]);
});

test("where not all labels fit, those that matter are written", () => {
  const column = { from: 0, to: 200, chosen: 101, strengths: new Map([[150, 0.9]]) };
  const shown = labelled(/** @type {any} */ (column));
  assert.ok(shown.includes(101) && shown.includes(150));
  assert.ok(shown.length < 40);
  const places = shown.map((at) => lineY(at, 0, 200)).sort((a, b) => a - b);
  for (let at = 1; at < places.length; at++) assert.ok(places[at] - places[at - 1] >= 13, "labels do not touch");
  assert.equal(labelled(/** @type {any} */ ({ ...column, to: 9, chosen: null, strengths: new Map() })).length, 9);
  assert.equal(labelText("·theatrical-long", 0.5, "left"), "·theatri… 0.50");
  assert.equal(labelText("·the", 0.5, "right"), "0.50 ·the");
  assert.equal(labelText("·the", 0.001, "left"), "·the");
});

test("a part of the matrix holds what is chosen", () => {
  const scene = /** @type {any} */ ({
    view: { queries: [0, 1, 2, 3, 4, 5], tokens: ["a", "b", "c", "d", "e", "f"] },
    chosen: { side: "query", query: 5, key: 0 },
    area: { q0: 0, q1: 6, k0: 0, k1: 6 },
  });
  assert.deepEqual(wholeArea(scene.view), scene.area);
  enlarge(scene, dragged({ from: { query: 3, key: 2 }, to: { query: 1, key: 4 } }));
  assert.deepEqual(scene.area, { q0: 1, q1: 4, k0: 2, k1: 5 });
  assert.deepEqual([scene.chosen.query, scene.chosen.key], [3, 2]);
  scene.chosen = { side: "query", query: 5, key: 0 };
  reveal(scene);
  assert.deepEqual(scene.area, { q0: 3, q1: 6, k0: 0, k1: 3 });
});

/** A store over a prompt of two layers that is too long to travel at once. */
function store() {
  const small = new Uint8Array(2 * 3); // a pixel for each plane of each layer
  const packed = Uint8Array.of(255, 10, 20, 30, 0, 40, 50, 60);
  const deflated = (/** @type {Uint8Array} */ bytes) => deflateSync(bytes);
  const view = /** @type {any} */ ({ ...VIEW, side: [1, 1], row: 0, glance: deflated(small), first: deflated(packed) });
  const page = { ask: mock.fn(), arrived: mock.fn(), failed: mock.fn(), current: () => 0 };
  return { layers: layerStore(view, page), page, packed: deflated(packed) };
}

test("a layer is asked for once, and is exact when it has arrived", async () => {
  const { layers, page, packed } = store();
  await layers.begin();
  assert.ok(layers.bytesOf(0, 0).exact);
  assert.ok(!layers.bytesOf(1, 0).exact, "the other one is coarse");
  layers.touch(0);
  layers.touch(1);
  layers.want(-1);
  layers.want(2);
  assert.deepEqual(
    page.ask.mock.calls.map((call) => call.arguments),
    [[1]],
  );
  assert.ok(layers.isAsked(1));
  await layers.arrive({ row: 1 }, [/** @type {any} */ (packed)]);
  assert.deepEqual([...layers.bytesOf(1, 0).bytes], [255, 0, 0, 10, 20, 30]);
  assert.ok(layers.bytesOf(1, 0).exact && !layers.isAsked(1));
  assert.deepEqual(
    page.arrived.mock.calls.map((call) => call.arguments),
    [[1]],
  );
});

test("a layer that is refused is said, and can be asked for again", async () => {
  const { layers, page } = store();
  await layers.begin();
  layers.want(1);
  await layers.arrive({ row: 1, error: "There is no row 1." }, []);
  assert.deepEqual(page.failed.mock.calls[0].arguments, ["There is no row 1."]);
  layers.want(1);
  assert.equal(page.ask.mock.callCount(), 2);
  layers.stop();
  assert.ok(!layers.isAsked(1));
});
