// Keys, pointers and input methods, handled in one place.

/** @type {Record<string, { across: number, down: number }>} */
const ARROWS = {
  ArrowLeft: { across: -1, down: 0 },
  ArrowRight: { across: 1, down: 0 },
  ArrowUp: { across: 0, down: -1 },
  ArrowDown: { across: 0, down: 1 },
};

/**
 * Which way an arrow key points; undefined for other keys.
 *
 * @param {KeyboardEvent} event
 * @returns {{ across: number, down: number } | undefined}
 */
export function arrow(event) {
  return ARROWS[event.key];
}

/**
 * Whether a key selects what has the focus.
 *
 * @param {KeyboardEvent} event
 */
export function isChoice(event) {
  return event.key === "Enter" || event.key === " ";
}

/**
 * Mark an event as handled, so that neither the browser nor Lab reacts to it.
 *
 * @param {Event} event
 */
export function take(event) {
  event.preventDefault();
  event.stopPropagation();
}

/**
 * Whether an input method is composing a character (Chinese, for example), so that the key belongs to it. Safari ends
 * the composition before it reports the key, and gives this key the code 229.
 *
 * @param {KeyboardEvent} event
 */
export function isComposing(event) {
  return event.isComposing || event.keyCode === 229;
}

/**
 * Act on Enter in a text box, but not on Shift+Enter and not while an input method composes.
 *
 * @param {EventTarget} input
 * @param {() => void} act
 */
export function onEnter(input, act) {
  input.addEventListener("keydown", (event) => {
    const key = /** @type {KeyboardEvent} */ (event);
    if (key.key !== "Enter" || key.shiftKey || isComposing(key)) return;
    key.preventDefault();
    act();
  });
}

/**
 * The pointer's position in an element, in CSS pixels from its top left corner, and the element's size.
 *
 * @param {{ clientX: number, clientY: number }} event
 * @param {Element} element
 */
export function pointer(event, element) {
  const { left, top, width, height } = element.getBoundingClientRect();
  return { x: event.clientX - left, y: event.clientY - top, width, height };
}
