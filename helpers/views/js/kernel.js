// The connection to the kernel: one request at a time.

export const PATIENCE = 20000; // ms without an answer before the page says so

/**
 * `page` is set before the first request: its root is marked as busy, its message says so if no answer comes.
 *
 * @param {import("@anywidget/types").AnyModel} model
 * @returns {Link}
 */
export function connect(model) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let waiting; // runs while the kernel works
  /** @type {Record<string, unknown> | null} */
  let next = null; // the last slider movement since then
  /** @type {Link} */
  const link = {
    page: null,
    send(command, values = {}, buffers = []) {
      if (waiting !== undefined) {
        if (command === "change") next = values;
        return;
      }
      link.page?.root.setAttribute("aria-busy", "true");
      waiting = setTimeout(() => {
        link.answered();
        if (link.page) link.page.message.textContent = "No answer from the kernel. Run this cell again to continue.";
      }, PATIENCE);
      model.send({ command, ...values }, undefined, buffers);
    },
    answered() {
      clearTimeout(waiting);
      waiting = undefined;
      link.page?.root.setAttribute("aria-busy", "false");
    },
    pending: () => next !== null,
    goOn() {
      if (next === null) return;
      const values = next;
      next = null;
      link.send("change", values);
    },
  };
  return link;
}

/**
 * Call each function when the model emits the event of its name, such as "change:view".
 *
 * @param {import("@anywidget/types").AnyModel} model
 * @param {Record<string, (...values: any[]) => void>} listeners
 * @returns {() => void} ends it
 */
export function listen(model, listeners) {
  for (const [name, act] of Object.entries(listeners)) model.on(name, act);
  return () => {
    for (const [name, act] of Object.entries(listeners)) model.off(name, act);
  };
}
