// Canvases that are sharp on every screen.

/**
 * Give a canvas this size in CSS pixels, and return its context, which uses CSS pixels too.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {number} wide
 * @param {number} high
 */
export function sharpContext(canvas, wide, high) {
  const sharp = window.devicePixelRatio || 1;
  canvas.width = wide * sharp;
  canvas.height = high * sharp;
  canvas.style.width = `${wide}px`;
  canvas.style.height = `${high}px`;
  const context = contextOf(canvas);
  context.scale(sharp, sharp);
  return context;
}

/** @param {HTMLCanvasElement} canvas */
export function contextOf(canvas) {
  return /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
}

/**
 * An invisible canvas with this many pixels.
 *
 * @param {number} wide
 * @param {number} high
 */
export function sheet(wide, high) {
  const canvas = document.createElement("canvas");
  canvas.width = wide;
  canvas.height = high;
  return canvas;
}

/**
 * A frame of two colours, one over the other, so that it can be seen on light and on dark.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {[number, number, number, number]} box x, y, width, height
 * @param {[string, number][]} lines colour and width, the wider one first
 */
export function frame(context, box, lines) {
  for (const [color, width] of lines) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.strokeRect(...box);
  }
}
