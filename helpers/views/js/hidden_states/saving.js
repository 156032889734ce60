// The grids as a file.

import { contextOf, sheet } from "../canvas.js";
import { largest } from "../color.js";
import { offerFile } from "../page.js";
import { drawing, fixColors, setAll, svgFile } from "../svg.js";
import { cut } from "../words.js";

const GAP = 12;
const TITLE = 26; // height in CSS pixels
const SHARP = 2; // pixels of a PNG per CSS pixel

/**
 * All grids in one drawing, with a title above them.
 *
 * @param {GridPanel[]} panels
 * @param {string} title
 * @param {Element} root
 */
function compose(panels, title, root) {
  const sizes = panels.map(({ svg }) => [Number(svg.getAttribute("width")), Number(svg.getAttribute("height"))]);
  const width = sizes.reduce((sum, [wide]) => sum + wide + GAP, GAP);
  const height = largest(sizes.map(([, high]) => high)) + TITLE + 8;
  const whole = drawing("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  const look = { "font-size": 13, "font-family": "sans-serif", fill: "var(--ink)" };
  whole.append(
    drawing("rect", { width, height, fill: "var(--paper)" }),
    drawing("text", { x: GAP, y: 18, ...look }, cut(title, Math.floor(width / 7))),
  );
  let x = GAP;
  panels.forEach(({ svg }, at) => {
    const copy = /** @type {SVGSVGElement} */ (svg.cloneNode(true));
    copy.querySelector(".hx-side")?.removeAttribute("transform");
    for (const name of ["tabindex", "role", "class"]) copy.removeAttribute(name);
    setAll(copy, { x, y: TITLE });
    whole.append(copy);
    x += sizes[at][0] + GAP;
  });
  fixColors(whole, getComputedStyle(root));
  return { file: svgFile(whole), width, height };
}

/**
 * @param {"png" | "svg"} kind
 * @param {GridPanel[]} panels
 * @param {string} title
 * @param {Element} root
 */
export async function saveGrids(kind, panels, title, root) {
  const { file, width, height } = compose(panels, title, root);
  if (kind === "svg") {
    offerFile("hidden_states.svg", file);
    return;
  }
  const image = new Image();
  image.src = URL.createObjectURL(file);
  await image.decode();
  const canvas = sheet(SHARP * width, SHARP * height);
  contextOf(canvas).drawImage(image, 0, 0, canvas.width, canvas.height);
  URL.revokeObjectURL(image.src);
  canvas.toBlob((blob) => blob && offerFile("hidden_states.png", blob));
}
