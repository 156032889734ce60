// The same strokes on a canvas and in an SVG, so that what is drawn on a page can be saved as either.

function canvasPen(context, font) {
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
    text(string, x, y, { align, color, size, bold = "", turned = false }) {
      context.save();
      context.translate(x, y);
      if (turned) context.rotate(-Math.PI / 2);
      context.font = `${bold}${size}px ${font}`;
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

function svgPen(wide, high, font) {
  const node = (name, attributes, parent) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    parent?.append(made);
    return made;
  };
  const root = node("svg", { width: wide, height: high, viewBox: `0 0 ${wide} ${high}`, "font-family": font });
  let group = root;
  return {
    image(source, [sx, sy, sw, sh], [x, y, width, height], smooth) {
      const part = document.createElement("canvas");
      [part.width, part.height] = [sw, sh];
      part.getContext("2d").drawImage(source, sx, sy, sw, sh, 0, 0, sw, sh);
      const style = smooth ? "" : "image-rendering:pixelated";
      node("image", { x, y, width, height, href: part.toDataURL(), preserveAspectRatio: "none", style }, group);
    },
    curve(x1, y1, x2, y2, color, alpha, width) {
      const middle = (x1 + x2) / 2;
      const d = `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`;
      node("path", { d, fill: "none", stroke: color, "stroke-opacity": alpha.toFixed(3), "stroke-width": width }, group);
    },
    box(x, y, width, height, color, line) {
      node("rect", { x, y, width, height, fill: "none", stroke: color, "stroke-width": line }, group);
    },
    fill(x, y, width, height, color, alpha) {
      node("rect", { x, y, width, height, fill: color, "fill-opacity": alpha.toFixed(3) }, group);
    },
    text(string, x, y, { align, color, size, bold = "", turned = false }) {
      const anchor = { left: "start", right: "end", center: "middle" }[align];
      const place = `translate(${x} ${y})${turned ? " rotate(-90)" : ""}`;
      const weight = bold ? "bold" : "normal";
      const attributes = { transform: place, "text-anchor": anchor, "dominant-baseline": "central", fill: color, "font-size": size };
      node("text", { ...attributes, "font-weight": weight, "xml:space": "preserve" }, group).textContent = string;
    },
    moved(x, y, act) {
      const before = group;
      group = node("g", { transform: `translate(${x} ${y})` }, before);
      act();
      group = before;
    },
    source: () => new XMLSerializer().serializeToString(root),
  };
}
