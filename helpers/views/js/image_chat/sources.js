// Where the picture comes from: the gallery, a file, or a drawing.

import { button, group, make } from "../page.js";

const LARGEST = 8e6; // bytes of an upload; a message to the kernel must stay below 10 MB

/**
 * @param {ChatStill["gallery"]} gallery
 * @param {(name: string) => void} choose
 */
export function galleryPanel(gallery, choose) {
  const thumbs = gallery.map(({ name, thumbnail }) => {
    const about = { class: "hx-thumb", "data-name": name, title: name, "aria-label": name };
    const thumb = button("", () => choose(name), about);
    thumb.append(thumbnail ? make("img", { src: thumbnail, alt: "" }) : make("span", {}, name));
    return thumb;
  });
  return {
    node: make("div", {}, group("hx-gallery", "Pictures to choose from", ...thumbs)),
    /** @param {string} picture */
    draw(picture) {
      for (const thumb of thumbs) thumb.setAttribute("aria-pressed", String(thumb.dataset.name === picture));
    },
  };
}

/**
 * @param {Send} send
 * @param {(words: string) => void} refuse says why a file cannot be sent
 */
export function uploadPanel(send, refuse) {
  const about = { class: "hx-spoken", tabindex: -1, "aria-hidden": "true" };
  const file = make("input", { type: "file", accept: "image/*", ...about, onchange: () => upload(file.files?.[0]) });
  const choose = button("Choose a file …", () => file.click(), { class: "hx-file" });
  const ondrop = (/** @type {DragEvent} */ event) => {
    event.preventDefault();
    event.stopPropagation();
    upload(event.dataTransfer?.files[0]);
  };
  const ondragover = (/** @type {DragEvent} */ event) => event.preventDefault();

  /** @param {File} [chosen] */
  async function upload(chosen) {
    if (!chosen) return;
    file.value = "";
    if (chosen.size > LARGEST) {
      const size = Math.round(chosen.size / 1e6);
      refuse(`${chosen.name} has ${size} MB, but a page can send at most 8 MB: make it smaller.`);
      return;
    }
    send("upload", { name: chosen.name }, [await chosen.arrayBuffer()]);
  }

  return { node: make("div", { class: "hx-drop", ondrop, ondragover }, choose, " or drop one here", file) };
}
