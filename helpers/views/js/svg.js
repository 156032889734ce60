// SVG drawings, and what it takes to save one.

const SVG = "http://www.w3.org/2000/svg";

/**
 * @template {keyof SVGElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, string | number>} [attributes]
 * @param {...(Node | string)} children
 * @returns {SVGElementTagNameMap[K]}
 */
export function drawing(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  setAll(node, attributes);
  node.append(...children);
  return node;
}

/**
 * @param {Element} node
 * @param {Record<string, string | number>} attributes
 */
export function setAll(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
}

/**
 * Write the page's colours into a drawing that will be saved: `var(--ink)` has no meaning outside the page.
 *
 * @param {SVGElement} root
 * @param {CSSStyleDeclaration} look
 */
export function fixColors(root, look) {
  for (const node of root.querySelectorAll("*")) {
    for (const name of ["fill", "stroke"]) {
      const asked = /^var\((--\w+)\)$/.exec(node.getAttribute(name) || "");
      if (asked) node.setAttribute(name, look.getPropertyValue(asked[1]).trim());
    }
  }
}

/**
 * The drawing as a file; all text in it is escaped here.
 *
 * @param {SVGElement} root
 */
export function svgFile(root) {
  return new Blob([new XMLSerializer().serializeToString(root)], { type: "image/svg+xml" });
}
