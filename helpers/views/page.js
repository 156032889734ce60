// What the page sides of all widgets share; helpers/views/widget.py puts it in front of each of them.
// Text goes into the page as text only, never as HTML.

const PATIENCE = 20000; // ms without an answer before the page says so

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  // Lab's one-letter and arrow shortcuts match the focused element itself, so each has to say no.
  if (["button", "canvas", "input", "summary"].includes(tag)) node.dataset.lmSuppressShortcuts = "true";
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// The way to the kernel: one wish at a time. `link.page` is { root, message }, set before the first wish.
function connect(model) {
  let waiting = null; // timer while the kernel works
  let next = null; // the last slider movement made meanwhile
  const link = {
    send(command, values = {}, buffers = []) {
      if (waiting) {
        if (command === "change") next = values;
        return;
      }
      link.page.root.setAttribute("aria-busy", "true");
      waiting = setTimeout(() => {
        link.answered();
        link.page.message.textContent = "No answer from the kernel. Run this cell again to go on.";
      }, PATIENCE);
      model.send({ command, ...values }, undefined, buffers);
    },
    answered() {
      clearTimeout(waiting);
      waiting = null;
      link.page.root.setAttribute("aria-busy", "false");
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

// Give the reader a file to save, made in the page.
function offerFile(name, blob) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
