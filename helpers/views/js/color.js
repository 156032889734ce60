// Colours: the colour of a value on a scale, and which text can be read on it.

const SMALLEST = 1e-9;

/** @param {string} hex such as "#0072b2" */
export function rgb(hex) {
  return [1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16));
}

/**
 * The colour of a value; null if there is no value.
 *
 * @param {number | null} value
 * @param {Scale} scale
 */
export function colorOf(value, scale) {
  if (value === null) return null;
  const at = (scale.log ? Math.log10(Math.max(value, SMALLEST)) : value) - scale.low;
  const share = Math.max(0, Math.min(1, at / (scale.high - scale.low || 1)));
  return scale.colors[Math.round(share * (scale.colors.length - 1))];
}

/**
 * Whether dark letters can be read on a colour.
 *
 * @param {string} hex
 */
export function isBright(hex) {
  const [red, green, blue] = rgb(hex);
  return 0.299 * red + 0.587 * green + 0.114 * blue > 135;
}

/**
 * A light colour of the same hue.
 *
 * @param {string} hex
 */
export function tint(hex) {
  const light = rgb(hex).map((part) => Math.round(255 - 0.55 * (255 - part)));
  return `#${light.map((part) => part.toString(16).padStart(2, "0")).join("")}`;
}

/**
 * A CSS background that runs through the colours.
 *
 * @param {string[]} colors
 */
export function ramp(colors) {
  return `linear-gradient(90deg, ${colors.join(",")})`;
}

/** @param {number[]} numbers */
export function largest(numbers) {
  return numbers.reduce((most, number) => Math.max(most, number), Number.NEGATIVE_INFINITY);
}

/** @param {number[]} numbers */
export function smallest(numbers) {
  return numbers.reduce((least, number) => Math.min(least, number), Number.POSITIVE_INFINITY);
}
