// The drawing board: marks on a white square, with all positions and sizes as fractions of its side.

import { contextOf } from "../canvas.js";

const PAPER = "#f8f8f6";
const PEN = 0.055; // width of the pen's line

/**
 * @param {HTMLCanvasElement} canvas
 * @param {() => ChatStill["outlines"]} outlines the corners of each shape, with centre (0, 0) and size 1
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
    isDirty: true, // true until the model has been asked about it
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
 * The corners of a mark. A single touch of the pen becomes a short line, so that it is visible.
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
