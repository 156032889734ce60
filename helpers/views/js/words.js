// Readable numbers and labels.

/** @param {number | null} value */
export function threeDigits(value) {
  if (value === null) return "–";
  return Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3);
}

/** @param {number} value */
export function signed(value) {
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
}

/** @param {number} share from 0 to 1 */
export function percent(share) {
  return `${share < 0.0995 ? (100 * share).toFixed(1) : Math.round(100 * share)}%`;
}

/**
 * As much of a text as fits into the width of `fits` Latin letters; Chinese characters are nearly twice as wide.
 *
 * @param {string} text
 * @param {number} fits
 */
export function cut(text, fits) {
  let used = 0;
  const kept = [];
  for (const character of text) {
    used += (character.codePointAt(0) ?? 0) > 0x2e7f ? 1.8 : 1;
    if (used > fits) return `${kept.slice(0, -1).join("")}…`;
    kept.push(character);
  }
  return text;
}

/**
 * At most this many characters of a label.
 *
 * @param {string} label
 * @param {number} most
 */
export function short(label, most) {
  const characters = [...label];
  return characters.length > most ? `${characters.slice(0, most - 1).join("")}…` : label;
}
