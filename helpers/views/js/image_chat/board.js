// The drawing board: marks on a white square, all places and sizes in fractions of its side.

import { contextOf } from "../canvas.js";

const PAPER = "#f8f8f6";
const PEN = 0.055; // width of the pen's line

/**
 * @param {HTMLCanvasElement} canvas
 * @param {() => ChatStill["outlines"]} outlines the corners of each shape, around (0, 0) and of size 1
 */
export function newBoard(canvas, outlines) {
  /** @type {Mark[]} */
  const marks = [];
  const context = contextOf(canvas);
  const side = canvas.width;

  /** @param {Mark} mark */
  function draw(mark) {
    context.fillStyle = context.strokeStyle = mark.color;
    context.beginPath();
    for (const [x, y] of cornersOf(mark, outlines())) context.lineTo(x * side, y * side);
    if (mark.kind !== "pen") {
      context.fill();
      return;
    }
    context.lineWidth = PEN * side;
    context.lineCap = context.lineJoin = "round";
    context.stroke();
  }

  return {
    marks,
    isDirty: true, // whether the model has not been asked about it yet
    draw() {
      context.fillStyle = PAPER;
      context.fillRect(0, 0, side, side);
      marks.forEach(draw);
    },
    /** @returns {Promise<ArrayBuffer>} */
    async png() {
      const file = await new Promise((/** @type {BlobCallback} */ done) => canvas.toBlob(done, "image/png"));
      return /** @type {Blob} */ (file).arrayBuffer();
    },
  };
}

/**
 * Where a mark's line runs. A single touch of the pen is a short line, so that there is something to see.
 *
 * @param {Mark} mark
 * @param {ChatStill["outlines"]} outlines
 * @returns {[number, number][]}
 */
export function cornersOf({ kind, x = 0, y = 0, size = 1, points = [] }, outlines) {
  if (kind !== "pen") return outlines[kind].map(([right, down]) => [x + size * right, y + size * down]);
  const [first] = points;
  return points.length === 1 ? [first, [first[0] + 0.0003, first[1]]] : points;
}
