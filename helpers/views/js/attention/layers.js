// The layers that a page has, those it has requested from the kernel, and what it shows until they arrive.

import { PATIENCE } from "../kernel.js";
import { enlarged, inflate, square } from "./weights.js";

const MOST_BYTES = 96e6; // bytes of layers that are kept in the page

/**
 * `ask` sends a request to the kernel; `arrived` and `failed` receive its result; `current` is the row that is shown.
 *
 * @param {AttentionView} view
 * @param {{ ask: (row: number) => void, arrived: (row: number) => void, failed: (words: string) => void,
 *   current: () => number }} page
 * @returns {Layers}
 */
export function layerStore(view, { ask, arrived, failed, current }) {
  const { layers, planes, queries, tokens, side } = view;
  const size = queries.length * tokens.length;
  /** @type {Map<number, Uint8Array>} */
  const known = new Map(); // row -> bytes [plane, query, key], the newest last
  /** @type {Map<number, ReturnType<typeof setTimeout>>} */
  const asked = new Map();

  /** @param {number} row */
  function giveUp(row) {
    clearTimeout(asked.get(row));
    asked.delete(row);
  }

  function forgetTheOldest() {
    for (const row of known.keys()) {
      if (known.size * planes.length * size <= MOST_BYTES || known.size <= 3) break;
      if (row !== current()) known.delete(row);
    }
  }

  /** @type {Layers} */
  const store = {
    small: null, // all planes of all layers, at a glance
    async begin() {
      const small = await inflate(view.glance);
      if (side[0] === queries.length && side[1] === tokens.length) {
        // a short prompt: nothing was left out of the small pictures
        const each = planes.length * size;
        layers.forEach((_, row) => {
          known.set(row, small.subarray(row * each, (row + 1) * each));
        });
      } else {
        known.set(view.row, square(await inflate(view.first), view));
      }
      store.small = small;
    },
    want(row) {
      if (row < 0 || row >= layers.length || known.has(row) || asked.has(row)) return;
      const timer = setTimeout(() => {
        giveUp(row);
        failed("No answer from the kernel: you see a coarse preview. Run this cell again to continue.");
      }, PATIENCE);
      asked.set(row, timer);
      ask(row);
    },
    touch(row) {
      const bytes = known.get(row);
      if (!bytes) {
        store.want(row);
        return;
      }
      known.delete(row);
      known.set(row, bytes);
      store.want(row + 1);
      store.want(row - 1);
    },
    async arrive(content, buffers) {
      clearTimeout(asked.get(content.row));
      if (content.error) {
        giveUp(content.row);
        failed(content.error);
        return;
      }
      const bytes = square(await inflate(buffers[0]), view);
      giveUp(content.row);
      known.set(content.row, bytes);
      forgetTheOldest();
      arrived(content.row);
    },
    bytesOf(row, plane) {
      const layer = known.get(row);
      if (layer) return { bytes: layer.subarray(plane * size, (plane + 1) * size), exact: true };
      const small = /** @type {Uint8Array} */ (store.small);
      return { bytes: enlarged(small, row * planes.length + plane, view), exact: false };
    },
    isAsked: (row) => asked.has(row),
    stop() {
      for (const row of [...asked.keys()]) giveUp(row);
    },
  };
  return store;
}
