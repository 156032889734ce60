// The whole explorer as a file.

import { contextOf, sheet } from "../canvas.js";
import { offerFile } from "../page.js";
import { canvasPen, svgPen } from "../pens.js";
import { glanceSize, paintGlance } from "./glance.js";
import { HEIGHT, LINES, paintLines } from "./lines.js";
import { MATRIX, paintMatrix } from "./matrix.js";
import { paintPicture, pictureSize } from "./picture.js";
import { sceneName } from "./scene.js";

const TITLE = 26; // height, in CSS pixels
const SHARP = 2; // pixels of a PNG per CSS pixel

/**
 * @param {Pen} pen
 * @param {Theme} theme
 * @param {Scene} scene
 */
function compose(pen, theme, scene) {
  const top = TITLE + glanceSize(scene.view).high + 22;
  pen.text(`Attention: ${sceneName(scene)}`, 8, 14, { align: "left", color: theme.ink, size: 14, bold: true });
  pen.moved(8, TITLE, () => paintGlance(pen, theme, scene));
  pen.moved(8, top, () => paintLines(pen, theme, scene));
  pen.moved(LINES + 24, top, () => paintMatrix(pen, theme, scene));
  if (scene.view.patches) pen.moved(8, top + HEIGHT + 12, () => paintPicture(pen, theme, scene));
}

/** @param {AttentionView} view */
function sizeOf(view) {
  const glance = glanceSize(view);
  const picture = view.patches ? pictureSize(view).high + 12 : 0;
  return {
    wide: Math.max(LINES + MATRIX + 32, 20 + glance.wide),
    high: TITLE + glance.high + 22 + HEIGHT + 14 + picture,
  };
}

/**
 * @param {"png" | "svg"} kind
 * @param {Scene} scene
 * @param {Theme} theme
 * @param {string} font
 */
export function saveScene(kind, scene, theme, font) {
  const { wide, high } = sizeOf(scene.view);
  const name = `attention-layer${scene.view.layers[scene.row]}-${scene.view.planes[scene.plane]}.${kind}`;
  if (kind === "svg") {
    const pen = svgPen(wide, high, font);
    pen.fill(0, 0, wide, high, theme.paper, 1);
    compose(pen, theme, scene);
    offerFile(name, pen.file());
    return;
  }
  const target = sheet(SHARP * wide, SHARP * high);
  const context = contextOf(target);
  context.scale(SHARP, SHARP);
  const pen = canvasPen(context, font);
  pen.fill(0, 0, wide, high, theme.paper, 1);
  compose(pen, theme, scene);
  target.toBlob((blob) => blob && offerFile(name, blob));
}
