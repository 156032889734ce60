// The same drawing operations for a canvas and for an SVG, so that a page's drawing can be saved as either.

import { contextOf, sheet } from "./canvas.js";
import { drawing, svgFile } from "./svg.js";

/**
 * @param {CanvasRenderingContext2D} context
 * @param {string} font
 * @returns {Pen}
 */
export function canvasPen(context, font) {
  return {
    image(source, [sx, sy, sw, sh], [x, y, w, h], smooth) {
      context.imageSmoothingEnabled = Boolean(smooth);
      context.imageSmoothingQuality = "high";
      context.drawImage(source, sx, sy, sw, sh, x, y, w, h);
    },
    curve(x1, y1, x2, y2, color, alpha, width) {
      const middle = (x1 + x2) / 2;
      context.globalAlpha = alpha;
      context.strokeStyle = color;
      context.lineWidth = width;
      context.beginPath();
      context.moveTo(x1, y1);
      context.bezierCurveTo(middle, y1, middle, y2, x2, y2);
      context.stroke();
      context.globalAlpha = 1;
    },
    box(x, y, w, h, color, width) {
      context.strokeStyle = color;
      context.lineWidth = width;
      context.strokeRect(x, y, w, h);
    },
    fill(x, y, w, h, color, alpha) {
      context.globalAlpha = alpha;
      context.fillStyle = color;
      context.fillRect(x, y, w, h);
      context.globalAlpha = 1;
    },
    text(string, x, y, { align, color, size, bold = false, turned = false }) {
      context.save();
      context.translate(x, y);
      if (turned) context.rotate(-Math.PI / 2);
      context.font = `${bold ? "bold " : ""}${size}px ${font}`;
      context.fillStyle = color;
      context.textAlign = align;
      context.textBaseline = "middle";
      context.fillText(string, 0, 0);
      context.restore();
    },
    moved(x, y, act) {
      context.save();
      context.translate(x, y);
      act();
      context.restore();
    },
  };
}

/**
 * @param {number} wide
 * @param {number} high
 * @param {string} font
 * @returns {Pen & { file: () => Blob }}
 */
export function svgPen(wide, high, font) {
  const root = drawing("svg", { width: wide, height: high, viewBox: `0 0 ${wide} ${high}`, "font-family": font });
  /** @type {SVGElement} */
  let into = root;
  return {
    image(source, [sx, sy, sw, sh], [x, y, width, height], smooth) {
      const part = sheet(sw, sh);
      contextOf(part).drawImage(source, sx, sy, sw, sh, 0, 0, sw, sh);
      const style = smooth ? "" : "image-rendering:pixelated";
      into.append(
        drawing("image", { x, y, width, height, href: part.toDataURL(), preserveAspectRatio: "none", style }),
      );
    },
    curve(x1, y1, x2, y2, color, alpha, width) {
      const middle = (x1 + x2) / 2;
      const d = `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`;
      const line = { fill: "none", stroke: color, "stroke-opacity": alpha.toFixed(3), "stroke-width": width };
      into.append(drawing("path", { d, ...line }));
    },
    box(x, y, width, height, color, line) {
      into.append(drawing("rect", { x, y, width, height, fill: "none", stroke: color, "stroke-width": line }));
    },
    fill(x, y, width, height, color, alpha) {
      into.append(drawing("rect", { x, y, width, height, fill: color, "fill-opacity": alpha.toFixed(3) }));
    },
    text(string, x, y, { align, color, size, bold = false, turned = false }) {
      const look = {
        transform: `translate(${x} ${y})${turned ? " rotate(-90)" : ""}`,
        "text-anchor": { left: "start", right: "end", center: "middle" }[align],
        "dominant-baseline": "central",
        "font-size": size,
        "font-weight": bold ? "bold" : "normal",
        "xml:space": "preserve",
      };
      into.append(drawing("text", { ...look, fill: color }, string));
    },
    moved(x, y, act) {
      const before = into;
      into = drawing("g", { transform: `translate(${x} ${y})` });
      before.append(into);
      act();
      into = before;
    },
    file: () => svgFile(root),
  };
}
