// What the reader can do in an attention explorer.

import { arrow, take } from "../input.js";
import { clamp } from "../page.js";
import { drawGlance, headAt, headByKey, paintTiles } from "./glance.js";
import { layerStore } from "./layers.js";
import { lineAt } from "./lines.js";
import { cellAt, dragged } from "./matrix.js";
import { drawScene, fontOf, layerName, newParts, themeOf } from "./parts.js";
import { patchAt } from "./picture.js";
import { saveScene } from "./saving.js";
import { enlarge, focusPosition, newScene, planeName, reveal, wholeArea } from "./scene.js";

const LEAST_DRAG = 2; // cells: a shorter drag is a click
/** @type {[number, number]} */
const NOWHERE = [-1, -1]; // row and plane where there is no head

export class AttentionExplorer {
  /**
   * @param {AttentionView} view
   * @param {(row: number) => void} ask asks the kernel for a layer
   */
  constructor(view, ask) {
    this.view = view;
    this.layers = layerStore(view, {
      ask,
      arrived: (row) => this.arrived(row),
      failed: (words) => this.failed(words),
      current: () => this.scene.row,
    });
    this.scene = newScene(view, this.layers);
    this.parts = newParts(view, {
      select: (row, plane) => this.select(row, plane),
      turn: (side) => this.turn(side),
      showAll: () => this.show(wholeArea(view)),
      save: (kind) => saveScene(kind, this.scene, themeOf(this.parts.root), fontOf(this.parts.root)),
      choosePosition: (position) => this.choosePosition(position),
      moveByKey: (event) => this.moveByKey(event),
      listeners: this.listeners(),
    });
  }

  /** @returns {Record<"heads" | "lines" | "matrix" | "picture", Attributes>} */
  listeners() {
    const { scene } = this;
    const onkeydown = (/** @type {KeyboardEvent} */ event) => this.moveByKey(event);
    const [onpointerleave, onpointerdown] = [() => this.leave(), () => this.pin()];
    return {
      heads: {
        onkeydown: (event) => this.select(...(headByKey(event, scene) ?? NOWHERE)),
        onpointermove: (event) => this.pointAtHead(headAt(event, this.view)),
        onpointerleave: () => this.pointAtHead(null),
        onpointerdown: (event) => this.select(...(headAt(event, this.view) ?? NOWHERE)),
      },
      lines: { onkeydown, onpointerleave, onpointerdown, onpointermove: (event) => this.point(lineAt(event, scene)) },
      matrix: {
        onkeydown,
        onpointerleave,
        onpointermove: (event) => this.pointAtCell(event),
        onpointerdown: (event) => this.startDrag(event),
        onpointerup: (event) => this.endDrag(event),
        ondblclick: () => this.show(wholeArea(this.view)),
      },
      picture: {
        onkeydown,
        onpointerleave,
        onpointerdown,
        onpointermove: (event) => this.point(patchAt(event, scene)),
      },
    };
  }

  async begin() {
    const { picture } = this.view;
    await this.layers.begin();
    if (picture) {
      const file = new Blob([/** @type {BlobPart} */ (picture)], { type: "image/png" });
      this.scene.photo = await createImageBitmap(file);
    }
    this.scene.glance = paintTiles(this.scene);
    this.select(this.scene.row, this.scene.plane);
  }

  /** @param {number} row */
  arrived(row) {
    this.parts.message.textContent = "";
    if (row !== this.scene.row) return;
    this.scene.shown = null;
    this.draw();
    this.layers.touch(row);
  }

  /** @param {string} words */
  failed(words) {
    this.parts.root.setAttribute("aria-busy", "false");
    this.parts.message.textContent = words;
  }

  /**
   * @param {number} row
   * @param {number} plane
   */
  select(row, plane) {
    if (row < 0) return;
    Object.assign(this.scene, { row, plane, shown: null });
    this.parts.layers.selectedIndex = row;
    this.parts.planes.selectedIndex = plane;
    this.layers.touch(row);
    this.drawAll();
  }

  /** @param {Side} side */
  turn(side) {
    this.scene.chosen.side = side;
    this.draw();
  }

  /** @param {Area} area */
  show(area) {
    enlarge(this.scene, area);
    this.draw();
  }

  /** @param {number} position */
  choosePosition(position) {
    const { chosen } = this.scene;
    if (chosen.side === "key") chosen.key = position;
    else if (this.view.queries.includes(position)) chosen.query = this.view.queries.indexOf(position);
    this.scene.over = null;
    reveal(this.scene);
    this.draw();
  }

  /** @param {Spot | null} over */
  point(over) {
    const before = this.scene.over;
    if (before && over && before.query === over.query && before.key === over.key && before.side === over.side) return;
    this.scene.over = over;
    this.draw();
  }

  leave() {
    if (!this.scene.drag) this.point(null);
  }

  pin() {
    if (!this.scene.over) return;
    Object.assign(this.scene.chosen, this.scene.over);
    this.scene.over = null;
    this.draw();
  }

  /** @param {[number, number] | null} head */
  pointAtHead(head) {
    const [row, plane] = head ?? NOWHERE;
    this.parts.pointed.textContent = head
      ? `${layerName(this.view.layers[row])}, ${planeName(this.view.planes[plane])}`
      : "";
    this.layers.want(row);
  }

  /** @param {PointerEvent} event */
  pointAtCell(event) {
    const { scene } = this;
    const cell = cellAt(event, this.parts.matrix, scene.area);
    if (scene.drag) scene.drag.to = cell;
    this.point({ side: scene.chosen.side, ...cell });
  }

  /** @param {PointerEvent} event */
  startDrag(event) {
    const cell = cellAt(event, this.parts.matrix, this.scene.area);
    this.scene.drag = { from: cell, to: cell };
    this.parts.matrix.setPointerCapture(event.pointerId);
  }

  /** @param {PointerEvent} event */
  endDrag(event) {
    const { scene } = this;
    if (!scene.drag) return;
    const to = cellAt(event, this.parts.matrix, scene.area);
    const part = dragged({ from: scene.drag.from, to });
    scene.drag = null;
    if (part.q1 - part.q0 > LEAST_DRAG && part.k1 - part.k0 > LEAST_DRAG) {
      scene.over = null;
      this.show(part);
    } else {
      scene.over = { side: scene.chosen.side, ...to };
      this.pin();
    }
  }

  /**
   * On lines, matrix and tokens: up and down change the query, left and right the key.
   *
   * @param {KeyboardEvent} event
   */
  moveByKey(event) {
    const { scene, parts } = this;
    const isOnTokens = parts.chips.node.contains(/** @type {Node} */ (event.target));
    const step = arrow(event);
    if (step) this.step(isOnTokens ? scene.chosen.side : step.down ? "query" : "key", step.across + step.down);
    else if (event.key === "Enter" && !isOnTokens) scene.chosen.side = scene.chosen.side === "query" ? "key" : "query";
    else if (event.key === "Escape") scene.area = wholeArea(this.view);
    else return;
    take(event);
    this.draw();
    if (isOnTokens && step) parts.chips.focus(focusPosition(scene));
  }

  /**
   * @param {Side} side
   * @param {number} by
   */
  step(side, by) {
    const { scene } = this;
    const most = side === "query" ? this.view.queries.length : this.view.tokens.length;
    scene.over = null;
    scene.chosen[side] = clamp(scene.chosen[side] + by, 0, most - 1);
    reveal(scene);
  }

  drawAll() {
    const { root, heads } = this.parts;
    if (this.scene.glance) drawGlance(heads, themeOf(root), fontOf(root), this.scene);
    this.draw();
  }

  draw() {
    if (this.layers.small) drawScene(this.parts, this.scene);
  }
}
