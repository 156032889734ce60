// The parts of a page. Text goes into the page as text only, never as HTML.

const TAKES_KEYS = ["button", "canvas", "input", "select", "summary", "textarea"];

/**
 * An element with attributes, listeners (`onclick` and so on) and children.
 *
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Attributes} [attributes] `true` sets an attribute without a value; `false` and null omit it
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  // Lab's one-letter and arrow shortcuts match the focused element itself, so each element has to opt out.
  if (TAKES_KEYS.includes(tag)) node.dataset.lmSuppressShortcuts = "true";
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, String(value));
  }
  node.append(...children);
  return node;
}

/**
 * @param {string} text
 * @param {(event: Event) => void} act
 * @param {Attributes} [more]
 */
export function button(text, act, more = {}) {
  return make("button", { type: "button", onclick: act, ...more }, text);
}

/**
 * A part of the page with a name for screen readers.
 *
 * @param {string} name
 * @param {string} label
 * @param {...(Node | string)} children
 */
export function group(name, label, ...children) {
  return make("div", { class: name, role: "group", "aria-label": label }, ...children);
}

/**
 * A bar filled from the left.
 *
 * @param {number} share from 0 to 1
 * @param {string} color a CSS colour, or the name of a class
 */
export function bar(share, color) {
  const isClass = color.startsWith("hx-");
  const fill = make("span", { class: isClass ? `hx-fill ${color}` : "hx-fill" });
  fill.style.width = `${100 * clamp(share, 0, 1)}%`;
  if (!isClass) fill.style.background = color;
  return make("span", { class: "hx-track" }, fill);
}

/**
 * @param {number} value
 * @param {number} low
 * @param {number} high
 */
export function clamp(value, low, high) {
  return Math.max(low, Math.min(high, value));
}

/**
 * Offer the reader a file that was made in the page for saving.
 *
 * @param {string} name
 * @param {Blob} blob
 */
export function offerFile(name, blob) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
