// The page side of attention_explorer (helpers/views/attention.py).
// `view` says what there is; a layer's weights come as bytes when they are asked for. All drawing is here.

const HEIGHT = 372; // of lines and matrix, in CSS pixels
const LINES = 342;
const MATRIX = 392;
const MARGIN = { left: 84, top: 8, bottom: 66, right: 6 }; // of the matrix, for labels
const EDGE = 9; // above the first line and below the last
const PICTURE = 232;
const COLUMN = 108; // of the labels beside the lines
const MOST_LINES = 500; // faint ones, behind those of the token pointed at
const MOST_BYTES = 96e6; // of layers kept in the page
const KEYS = 5; // named in the reading

const weightOf = (byte) => (byte / 255) ** 2;
const written = (weight) => (weight < 0.0005 ? "0" : weight < 0.01 ? weight.toFixed(3) : weight.toFixed(2));
const nameOf = (plane) => (/^\d+$/.test(plane) ? `head ${plane}` : plane === "mean" ? "mean over heads" : plane);
const short = (label, most) => ([...label].length > most ? `${[...label].slice(0, most - 1).join("")}…` : label);

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function render({ model, el }) {
  const view = model.get("view");
  const { tokens, queries, layers, planes, patches } = view;
  const Q = queries.length;
  const K = tokens.length;
  const [sideQ, sideK] = view.side;
  const palette = view.colors.map((color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16)));
  const known = new Map(); // row -> bytes [plane, query, key], the newest last
  const asked = new Map(); // row -> timer
  const state = { row: view.row, plane: view.plane, side: "query", query: Q - 1, key: 0, over: null };
  let area = whole();
  let small = null; // all planes of all layers, at a glance
  let shown = null; // what is drawn: { bytes [query, key], picture, pairs, exact }
  let photo = null; // the prompt's picture
  let drag = null;

  // ---------------------------------------------------------------- the page's parts

  const choose = (name, entries, pick) => make("select", {
    "aria-label": name, "data-lm-suppress-shortcuts": "true", onchange: (event) => pick(event.target.selectedIndex),
  }, ...entries.map((entry) => make("option", {}, entry)));
  const button = (text, act, more = {}) => make("button", { type: "button", onclick: act, ...more }, text);
  const canvas = (name, what, label, more = {}) => make("canvas", { // takes keys, so it is more than an image
    class: `hx-${name}`, tabindex: 0, role: "application", "aria-roledescription": what, "aria-label": label, ...more,
  });

  const layerBox = choose("Layer", layers.map((n) => `layer ${n}`), (at) => select(at, state.plane));
  const planeBox = choose("Head", planes.map(nameOf), (at) => select(state.row, at));
  const toKeys = button("query → keys", () => turn("query"), { class: "hx-tokeys", title: "what the query chosen looks at" });
  const toQueries = button("key ← queries", () => turn("key"), { class: "hx-toqueries", title: "who looks at the key chosen" });
  const all = button("whole matrix", () => enlarge(whole()), { class: "hx-whole" });
  const pointed = make("span", { class: "hx-where hx-pointed" });
  const heads = canvas("heads", "map of layers by heads", `All heads at a glance: ${layers.length} layers by ${planes.length}. Arrow keys choose.`, {
    onkeydown: chooseByKey, onpointermove: pointAtHead, onpointerleave: () => pointAtHead(null), onpointerdown: clickHead,
  });
  const lines = canvas("lines", "lines between tokens", "", { onkeydown: moveByKey, onpointermove: pointAtLine, onpointerleave: leave,
    onpointerdown: pin });
  const matrix = canvas("matrix", "matrix of weights", "", { onkeydown: moveByKey, onpointermove: pointAtCell, onpointerleave: leave,
    onpointerdown: startDrag, onpointerup: endDrag, ondblclick: () => enlarge(whole()) });
  const onPicture = canvas("picture", "picture in patches", "", { onpointermove: pointAtPatch, onpointerleave: leave, onpointerdown: pin,
    onkeydown: moveByKey });
  const share = make("div", { class: "hx-where" });
  const pictureBox = make("div", { class: "hx-panel" }, onPicture, share);
  const reading = make("div", { class: "hx-reading", "aria-live": "polite" });
  const chips = make("div", { class: "hx-chips", role: "group", "aria-label": "Tokens; arrow keys move", onkeydown: moveByKey });
  const message = make("div", { class: "hx-message", role: "alert" });
  const bar = make("span");
  bar.style.background = `linear-gradient(90deg, ${view.colors.filter((_, at) => at % 15 === 0).join(",")})`;
  const scale = make("div", { class: "hx-scale", "aria-hidden": "true" },
    make("span", {}, "weight"), bar, ...[0, 0.01, 0.1, 0.25, 0.5, 1].map((weight) => {
      const tick = make("span", { class: "hx-tick" }, String(weight));
      tick.style.left = `${100 * Math.sqrt(weight)}%`;
      bar.append(tick);
      return "";
    }));
  const root = make("div", { class: "hx hx-attention", role: "region", "aria-label": "Attention explorer" },
    make("div", { class: "hx-bar" }, make("strong", {}, "All heads at a glance"), pointed),
    make("div", { class: "hx-scroll" }, heads),
    make("div", { class: "hx-bar" }, layerBox, planeBox,
      make("span", { class: "hx-pair", role: "group", "aria-label": "Direction" }, toKeys, toQueries), all,
      make("span", { class: "hx-fill-space" }),
      button("PNG", () => save("png"), { class: "hx-png", "aria-label": "Save as PNG" }),
      button("SVG", () => save("svg"), { class: "hx-svg", "aria-label": "Save as SVG" })),
    make("div", { class: "hx-panels" }, lines, matrix), scale, reading,
    make("div", { class: "hx-below" }, ...(patches ? [pictureBox] : []), chips), message);
  const chipOf = new Map();
  tokens.forEach((label, position) => {
    if (patches && patches[position] >= 0) return;
    chipOf.set(position, button(label, () => choosePosition(position), {
      class: "hx-chip", tabindex: -1, title: `position ${position}`, "aria-label": `${label}, position ${position}`,
    }));
  });
  chips.append(...chipOf.values());
  el.append(root);

  // ---------------------------------------------------------------- layers on their way

  async function begin() {
    small = await inflate(view.glance);
    if (sideQ === Q && sideK === K) { // a short prompt: nothing was left out of the small pictures
      const each = planes.length * Q * K;
      layers.forEach((_, row) => known.set(row, small.subarray(row * each, (row + 1) * each)));
    } else {
      known.set(state.row, square(await inflate(view.first)));
    }
    if (view.picture) {
      photo = await createImageBitmap(new Blob([view.picture], { type: "image/png" }));
    }
    drawHeads();
    select(state.row, state.plane);
  }

  function want(row) {
    if (row < 0 || row >= layers.length || known.has(row) || asked.has(row)) return;
    asked.set(row, setTimeout(() => {
      asked.delete(row);
      root.setAttribute("aria-busy", "false");
      message.textContent = "No answer from the kernel: what you see is coarse. Run this cell again to go on.";
    }, PATIENCE));
    model.send({ command: "layer", row });
  }

  async function arrive(content, buffers) {
    clearTimeout(asked.get(content.row));
    if (content.error) {
      asked.delete(content.row);
      root.setAttribute("aria-busy", "false");
      message.textContent = content.error;
      return;
    }
    const bytes = square(await inflate(buffers[0]));
    asked.delete(content.row);
    known.set(content.row, bytes);
    message.textContent = "";
    for (const row of known.keys()) {
      if (known.size * bytes.length <= MOST_BYTES || known.size <= 3) break;
      if (row !== state.row) known.delete(row);
    }
    if (content.row === state.row) {
      shown = null;
      draw();
      want(state.row + 1);
      want(state.row - 1);
    }
  }

  // From one row a query, as long as what it may see, to [plane, query, key]; the mean over heads is taken here.
  function square(packed) {
    const size = Q * K;
    const mean = planes.indexOf("mean"); // the planes before it are the heads
    const result = new Uint8Array(planes.length * size);
    let from = 0;
    for (let plane = 0; plane < planes.length; plane++) {
      if (plane === mean) continue;
      for (let q = 0; q < Q; q++) {
        const count = queries[q] + 1;
        result.set(packed.subarray(from, from + count), plane * size + q * K);
        from += count;
      }
    }
    for (let at = 0; at < size; at++) {
      let squares = 0;
      for (let head = 0; head < mean; head++) squares += result[head * size + at] ** 2;
      result[mean * size + at] = Math.round(Math.sqrt(squares / mean));
    }
    return result;
  }

  // The plane to be drawn; while its layer is on the way, from what is there at a glance.
  function current() {
    if (shown) return shown;
    const layer = known.get(state.row);
    let bytes;
    if (layer) {
      bytes = layer.subarray(state.plane * Q * K, (state.plane + 1) * Q * K);
    } else {
      bytes = new Uint8Array(Q * K);
      const start = (state.row * planes.length + state.plane) * sideQ * sideK;
      for (let q = 0; q < Q; q++) {
        const line = start + Math.floor((q * sideQ) / Q) * sideK;
        for (let k = 0; k <= queries[q]; k++) bytes[q * K + k] = small[line + Math.floor((k * sideK) / K)];
      }
    }
    shown = { bytes, exact: Boolean(layer), picture: painted(bytes, Q, K, (q, k) => k <= queries[q]) };
    shown.pairs = strongest(bytes);
    return shown;
  }

  function painted(bytes, high, wide, visible, start = 0) {
    const target = document.createElement("canvas");
    target.width = wide;
    target.height = high;
    const pixels = new ImageData(wide, high);
    for (let q = 0, at = 0; q < high; q++) {
      for (let k = 0; k < wide; k++, at++) {
        if (!visible(q, k)) continue;
        const [red, green, blue] = palette[bytes[start + at]];
        pixels.data[4 * at] = red;
        pixels.data[4 * at + 1] = green;
        pixels.data[4 * at + 2] = blue;
        pixels.data[4 * at + 3] = 255;
      }
    }
    target.getContext("2d").putImageData(pixels, 0, 0);
    return target;
  }

  // The pairs with the largest weights, weak ones first: at most MOST_LINES.
  function strongest(bytes) {
    const counts = new Uint32Array(256);
    for (const byte of bytes) counts[byte]++;
    let least = 255;
    for (let total = counts[255]; least > 40 && total + counts[least - 1] <= MOST_LINES; least--) total += counts[least - 1];
    const pairs = [];
    for (let at = 0; at < bytes.length && pairs.length < 2 * MOST_LINES; at++) {
      if (bytes[at] >= least) pairs.push([bytes[at], Math.floor(at / K), at % K]);
    }
    return pairs.sort((a, b) => a[0] - b[0]);
  }

  // ---------------------------------------------------------------- what the reader does

  function select(row, plane) {
    state.row = Math.max(0, Math.min(layers.length - 1, row));
    state.plane = Math.max(0, Math.min(planes.length - 1, plane));
    shown = null;
    layerBox.selectedIndex = state.row;
    planeBox.selectedIndex = state.plane;
    if (known.has(state.row)) {
      const bytes = known.get(state.row);
      known.delete(state.row);
      known.set(state.row, bytes);
      want(state.row + 1);
      want(state.row - 1);
    } else {
      want(state.row);
    }
    frameHead();
    draw();
  }

  function turn(side) {
    state.side = side;
    draw();
  }

  function whole() {
    return { q0: 0, q1: Q, k0: 0, k1: K };
  }

  function enlarge(next) {
    area = next;
    state.query = Math.max(area.q0, Math.min(area.q1 - 1, state.query));
    state.key = Math.max(area.k0, Math.min(area.k1 - 1, state.key));
    draw();
  }

  // The query and the key pointed at, or else those chosen.
  const focus = () => state.over ?? state;

  function choosePosition(position) {
    if (state.side === "key") state.key = position;
    else if (queries.includes(position)) state.query = queries.indexOf(position);
    state.over = null;
    reveal();
    draw();
  }

  function point(over) {
    const before = state.over;
    if (before && over && before.query === over.query && before.key === over.key && before.side === over.side) return;
    state.over = over;
    draw();
  }

  function leave() {
    if (!drag) point(null);
  }

  function pin() {
    if (!state.over) return;
    Object.assign(state, state.over, { over: null });
    draw();
  }

  function spot(event) {
    const box = event.target.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  function pointAtLine(event) {
    const [x, y] = spot(event);
    const left = x < LINES / 2;
    const [from, to] = left ? [area.q0, area.q1] : [area.k0, area.k1];
    const at = Math.max(from, Math.min(to - 1, from + Math.floor(((y - EDGE) / (HEIGHT - 2 * EDGE)) * (to - from))));
    point(left ? { side: "query", query: at, key: state.key } : { side: "key", query: state.query, key: at });
  }

  function cellAt(event) {
    const [x, y] = spot(event);
    const wide = MATRIX - MARGIN.left - MARGIN.right;
    const high = HEIGHT - MARGIN.top - MARGIN.bottom;
    const inside = (value, low, up) => Math.max(low, Math.min(up - 1, Math.floor(value)));
    return {
      query: inside(area.q0 + ((y - MARGIN.top) / high) * (area.q1 - area.q0), area.q0, area.q1),
      key: inside(area.k0 + ((x - MARGIN.left) / wide) * (area.k1 - area.k0), area.k0, area.k1),
    };
  }

  function pointAtCell(event) {
    const cell = cellAt(event);
    if (drag) drag.to = cell;
    point({ side: state.side, ...cell });
  }

  function startDrag(event) {
    drag = { from: cellAt(event), to: cellAt(event) };
    matrix.setPointerCapture(event.pointerId);
  }

  function endDrag(event) {
    if (!drag) return;
    const { from } = drag;
    const to = cellAt(event);
    drag = null;
    const wide = Math.abs(to.key - from.key) + 1;
    const high = Math.abs(to.query - from.query) + 1;
    if (wide > 2 && high > 2) {
      const [q0, k0] = [Math.min(from.query, to.query), Math.min(from.key, to.key)];
      state.over = null;
      enlarge({ q0, q1: q0 + high, k0, k1: k0 + wide });
    } else {
      state.over = { side: state.side, ...to };
      pin();
    }
  }

  function pointAtPatch(event) {
    const [x, y] = spot(event);
    const { side, grid } = pictureGrid();
    const patch = Math.min(grid - 1, Math.floor((y / side) * grid)) * grid + Math.min(grid - 1, Math.floor((x / side) * grid));
    point({ side: "key", query: state.query, key: patches.indexOf(patch) });
  }

  function pictureGrid() {
    const grid = Math.round(Math.sqrt(patches.filter((patch) => patch >= 0).length));
    return { side: grid * Math.floor(PICTURE / grid), grid };
  }

  // On lines, matrix and tokens: up and down another query, left and right another key.
  function moveByKey(event) {
    const onTokens = chips.contains(event.target);
    const step = { ArrowUp: -1, ArrowDown: 1, ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const name = onTokens ? state.side : event.key === "ArrowUp" || event.key === "ArrowDown" ? "query" : "key";
    if (step) {
      state.over = null;
      state[name] = Math.max(0, Math.min((name === "query" ? Q : K) - 1, state[name] + step));
      reveal();
    } else if (event.key === "Enter" && !onTokens) state.side = state.side === "query" ? "key" : "query";
    else if (event.key === "Escape") area = whole();
    else return;
    event.preventDefault();
    event.stopPropagation();
    draw();
    if (onTokens && step) chipOf.get(here())?.focus();
  }

  // An enlarged part moves along with what is chosen.
  function reveal() {
    for (const [from, to, at, most] of [["q0", "q1", state.query, Q], ["k0", "k1", state.key, K]]) {
      const size = area[to] - area[from];
      if (at < area[from]) area[from] = at;
      else if (at >= area[to]) area[from] = Math.min(most, at + 1) - size;
      area[to] = area[from] + size;
    }
  }

  const tile = () => Math.max(12, Math.min(36, Math.floor((750 - 48) / layers.length), Math.floor(320 / planes.length)));

  function headAt(event) {
    const [x, y] = spot(event);
    const size = tile();
    const row = Math.floor((x - 48) / size);
    const plane = Math.floor((y - 16) / size);
    return row >= 0 && row < layers.length && plane >= 0 && plane < planes.length ? [row, plane] : null;
  }

  function pointAtHead(event) {
    const head = event && headAt(event);
    pointed.textContent = head ? `layer ${layers[head[0]]}, ${nameOf(planes[head[1]])}` : "";
    if (head) want(head[0]);
  }

  function clickHead(event) {
    const head = headAt(event);
    if (head) select(...head);
  }

  function chooseByKey(event) {
    const step = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    select(state.row + step[0], state.plane + step[1]);
  }

  // ---------------------------------------------------------------- drawing

  const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const theme = () => Object.fromEntries(
    ["ink", "muted", "paper", "rule", "shade", "query", "key"].map((name) => [name, color(`--${name}`)]));

  function penOf(target, wide, high) {
    const sharp = window.devicePixelRatio || 1;
    target.width = wide * sharp;
    target.height = high * sharp;
    target.style.width = `${wide}px`;
    target.style.height = `${high}px`;
    const context = target.getContext("2d");
    context.scale(sharp, sharp);
    return canvasPen(context, color("--sans"));
  }

  let glancePicture = null;

  function drawHeads() {
    const sheet = document.createElement("canvas");
    const gap = 2;
    sheet.width = layers.length * (sideK + gap);
    sheet.height = planes.length * (sideQ + gap);
    const context = sheet.getContext("2d");
    const visible = (q, k) => Math.floor((k * K) / sideK) <= queries[Math.min(Q - 1, Math.ceil(((q + 1) * Q) / sideQ) - 1)];
    for (let row = 0; row < layers.length; row++) {
      for (let plane = 0; plane < planes.length; plane++) {
        const start = (row * planes.length + plane) * sideQ * sideK;
        const picture = painted(small, sideQ, sideK, visible, start);
        context.drawImage(picture, row * (sideK + gap) + gap / 2, plane * (sideQ + gap) + gap / 2);
      }
    }
    glancePicture = sheet;
  }

  function paintGlance(pen, colors) {
    const size = tile();
    const most = Math.max(1, Math.ceil(24 / size));
    layers.forEach((layer, at) => {
      if (at % most === 0) pen.text(String(layer), 48 + (at + 0.5) * size, 8, { align: "center", color: colors.muted, size: 10 });
    });
    planes.forEach((plane, at) => {
      pen.text(plane, 43, 16 + (at + 0.5) * size, { align: "right", color: colors.muted, size: 10 });
    });
    const [wide, high] = [layers.length * size, planes.length * size];
    pen.image(glancePicture, [0, 0, glancePicture.width, glancePicture.height], [48, 16, wide, high], true);
    pen.box(48 + state.row * size, 16 + state.plane * size, size, size, colors.ink, 3.5);
    pen.box(48 + state.row * size, 16 + state.plane * size, size, size, colors.key, 2);
  }

  function frameHead() {
    if (glancePicture) paintGlance(penOf(heads, 50 + layers.length * tile(), 18 + planes.length * tile()), theme());
  }

  const lineY = (at, from, to) => EDGE + ((at - from + 0.5) / (to - from)) * (HEIGHT - 2 * EDGE);

  function paintLines(pen, colors) {
    const { bytes, pairs } = current();
    const { query, key, side } = focus();
    const yq = (q) => lineY(q, area.q0, area.q1);
    const yk = (k) => lineY(k, area.k0, area.k1);
    const [x1, x2] = [COLUMN, LINES - COLUMN];
    const inQ = (q) => q >= area.q0 && q < area.q1;
    const inK = (k) => k >= area.k0 && k < area.k1;
    for (const [byte, q, k] of pairs) {
      if (inQ(q) && inK(k)) pen.curve(x1, yq(q), x2, yk(k), colors.muted, 0.04 + 0.25 * weightOf(byte), 1);
    }
    const strong = []; // the other ends of the lines of the token pointed at
    const [from, to] = side === "query" ? [area.k0, area.k1] : [area.q0, area.q1];
    for (let at = from; at < to; at++) {
      const byte = side === "query" ? bytes[query * K + at] : bytes[at * K + key];
      if (byte < 8) continue;
      const weight = weightOf(byte);
      strong.push([weight, at]);
      const [y1, y2] = side === "query" ? [yq(query), yk(at)] : [yq(at), yk(key)];
      pen.curve(x1, y1, x2, y2, colors[side], Math.min(1, 0.12 + byte / 255), 0.8 + 3.2 * weight);
    }
    strong.sort((a, b) => b[0] - a[0]);
    const strengths = new Map(strong.map(([weight, at]) => [at, weight]));
    labels(pen, colors, area.q0, area.q1, (q) => tokens[queries[q]], {
      x: x1 - 6, align: "right", chosen: side === "query" ? query : null,
      strengths: side === "key" ? strengths : new Map(), tint: colors.key, own: colors.query,
    });
    labels(pen, colors, area.k0, area.k1, (k) => tokens[k], {
      x: x2 + 6, align: "left", chosen: side === "key" ? key : null,
      strengths: side === "query" ? strengths : new Map(), tint: colors.query, own: colors.key,
    });
  }

  // A column of tokens; where there is no room for all, those that matter now and every n-th.
  function labels(pen, colors, from, to, nameAt, { x, align, chosen, strengths, tint, own }) {
    const high = (HEIGHT - 2 * EDGE) / (to - from);
    const taken = [];
    const free = (y) => taken.every((other) => Math.abs(other - y) >= 13);
    const byWeight = [...strengths.entries()].sort((a, b) => b[1] - a[1]).map(([at]) => at);
    const step = Math.max(1, Math.ceil(15 / high));
    const others = [];
    for (let at = from; at < to; at += step) others.push(at);
    const most = high >= 13 ? byWeight.length : 12;
    const order = [...(chosen === null ? [] : [chosen]), ...byWeight.slice(0, most), ...others];
    for (const at of new Set(order)) {
      const y = lineY(at, from, to);
      if (at < from || at >= to || (high < 13 && !free(y))) continue;
      taken.push(y);
      const weight = strengths.get(at) ?? 0;
      if (weight) pen.fill(align === "left" ? x - 3 : x + 3 - COLUMN, y - 7, COLUMN, 14, tint, 0.75 * Math.sqrt(weight));
      if (at === chosen) pen.box(align === "left" ? x - 3 : x + 7 - COLUMN, y - 7, COLUMN - 4, 14, own, 2);
      const faint = !weight && at !== chosen;
      const number = weight >= 0.005 ? ` ${written(weight)}` : "";
      const label = short(nameAt(at), 14 - number.length);
      const bold = at === chosen ? "bold " : "";
      pen.text(align === "left" ? label + number : `${number.trim()} ${label}`.trim(), x, y,
        { align, color: faint ? colors.muted : colors.ink, size: 12, bold });
    }
  }

  function paintMatrix(pen, colors) {
    const { picture } = current();
    const { query, key } = focus();
    const [wide, high] = [MATRIX - MARGIN.left - MARGIN.right, HEIGHT - MARGIN.top - MARGIN.bottom];
    const [columns, rows] = [area.k1 - area.k0, area.q1 - area.q0];
    const [cellW, cellH] = [wide / columns, high / rows];
    const frame = [MARGIN.left, MARGIN.top, wide, high];
    pen.image(picture, [area.k0, area.q0, columns, rows], frame, columns > 2 * wide || rows > 2 * high);
    const x = MARGIN.left + (key - area.k0) * cellW;
    const y = MARGIN.top + (query - area.q0) * cellH;
    const inside = (at, from, to) => at >= from && at < to;
    const seen = Math.min(area.k1, queries[query] + 1) - area.k0; // keys that the query sees, in this part
    const hidden = Math.max(0, queries.findIndex((position) => position >= key) - area.q0); // queries before the key
    if (inside(query, area.q0, area.q1) && seen > 0) pen.box(MARGIN.left, y, seen * cellW, Math.max(cellH, 2), colors.query, 1.5);
    if (inside(key, area.k0, area.k1) && hidden < rows) {
      pen.box(x, MARGIN.top + hidden * cellH, Math.max(cellW, 2), high - hidden * cellH, colors.key, 1.5);
    }
    if (drag && drag.from.query !== drag.to.query) {
      const [q0, q1] = [drag.from.query, drag.to.query].sort((a, b) => a - b);
      const [k0, k1] = [drag.from.key, drag.to.key].sort((a, b) => a - b);
      pen.fill(MARGIN.left + (k0 - area.k0) * cellW, MARGIN.top + (q0 - area.q0) * cellH,
        (k1 - k0 + 1) * cellW, (q1 - q0 + 1) * cellH, colors.ink, 0.25);
    }
    const every = (cell) => Math.max(1, Math.ceil(12 / cell));
    for (let q = area.q0; q < area.q1; q += every(cellH)) {
      const at = MARGIN.top + (q - area.q0 + 0.5) * cellH;
      const style = { align: "right", color: q === query ? colors.ink : colors.muted, size: 10.5 };
      pen.text(short(tokens[queries[q]], 11), MARGIN.left - 5, at, style);
    }
    for (let k = area.k0; k < area.k1; k += every(cellW)) {
      const at = MARGIN.left + (k - area.k0 + 0.5) * cellW;
      const style = { align: "right", turned: true, color: k === key ? colors.ink : colors.muted, size: 10.5 };
      pen.text(short(tokens[k], 10), at, MARGIN.top + high + 5, style);
    }
    if (area.k1 - 1 - queries[area.q0] > 0.7 * columns) { // the future is hidden, so there is room
      ["a row: a query, which looks", "a column: a key, looked at", "drag to enlarge"].forEach((line, at) => {
        pen.text(line, MARGIN.left + wide - 4, MARGIN.top + 10 + 16 * at, { align: "right", color: colors.muted, size: 11 });
      });
    }
  }

  // The parts of the picture that get attention stay bright.
  function paintPicture(pen, colors) {
    const { side, grid } = pictureGrid();
    const { bytes } = current();
    const { query, key } = focus();
    if (photo) pen.image(photo, [0, 0, photo.width, photo.height], [0, 0, side, side], true);
    else pen.fill(0, 0, side, side, colors.shade, 1);
    const cell = side / grid;
    const places = patches.map((patch, position) => [patch, position]).filter(([patch]) => patch >= 0);
    const given = focus().side === "query"
      ? places.map(([, position]) => weightOf(bytes[query * K + position]))
      : places.map(([, position]) => (queries.includes(position) ? weightOf(bytes[queries.indexOf(position) * K + key]) : 0));
    const most = Math.max(...given, 1e-9);
    places.forEach(([patch], at) => {
      const dark = 0.82 * (1 - Math.sqrt(given[at] / most));
      pen.fill((patch % grid) * cell, Math.floor(patch / grid) * cell, cell, cell, "#000000", dark);
    });
    const brightest = places[given.indexOf(most)]?.[0] ?? 0; // framed: light says little on a dark picture
    pen.box((brightest % grid) * cell, Math.floor(brightest / grid) * cell, cell, cell, "#e69f00", 2);
    for (const [name, position] of [["query", queries[query]], ["key", key]]) {
      const patch = patches[position];
      if (patch >= 0) pen.box((patch % grid) * cell, Math.floor(patch / grid) * cell, cell, cell, colors[name], 3);
    }
    const total = given.reduce((sum, weight) => sum + weight, 0);
    share.textContent = focus().side === "query"
      ? `${written(total)} of this query's attention is on the picture; most on one patch: ${written(most)} (framed)`
      : `how strongly each patch, as a query, looks at the key; most: ${written(most)} (framed)`;
  }

  // The position that the side in use is at.
  const here = () => (focus().side === "query" ? queries[focus().query] : focus().key);

  function draw() {
    if (!small) return;
    const colors = theme();
    const { bytes, exact } = current();
    const { query, key, side } = focus();
    paintLines(penOf(lines, LINES, HEIGHT), colors);
    paintMatrix(penOf(matrix, MATRIX, HEIGHT), colors);
    if (patches) {
      const { side: wide } = pictureGrid();
      paintPicture(penOf(onPicture, wide, wide), colors);
    }
    root.setAttribute("aria-busy", String(asked.has(state.row)));
    toKeys.setAttribute("aria-pressed", String(state.side === "query"));
    toQueries.setAttribute("aria-pressed", String(state.side === "key"));
    all.disabled = area.q1 - area.q0 === Q && area.k1 - area.k0 === K;
    const ends = []; // [weight, position] of what the token pointed at is linked with
    for (let at = 0; at < (side === "query" ? K : Q); at++) {
      ends.push(side === "query" ? [weightOf(bytes[query * K + at]), at] : [weightOf(bytes[at * K + key]), queries[at]]);
    }
    const mine = here();
    const stop = chipOf.has(mine) ? mine : chipOf.keys().next().value; // a patch has no chip: Tab comes to the first
    const weightAt = new Map(ends.map(([weight, position]) => [position, weight]));
    for (const [position, chip] of chipOf) {
      const weight = weightAt.get(position) ?? 0;
      chip.style.background = weight > 0.0005
        ? `color-mix(in srgb, var(--${side}) ${Math.round(75 * Math.sqrt(weight))}%, var(--paper))` : "";
      const chosen = position === mine;
      if (chip.classList.contains("hx-here") !== chosen) chip.classList.toggle("hx-here", chosen);
      chip.tabIndex = position === stop ? 0 : -1;
    }
    const best = ends.sort((a, b) => b[0] - a[0]).slice(0, KEYS).filter(([weight]) => weight > 0.0005)
      .map(([weight, position]) => `${tokens[position]} (${position}) ${written(weight)}`).join(", ");
    const title = `layer ${layers[state.row]}, ${nameOf(planes[state.plane])}`;
    const looks = side === "query"
      ? `query ${tokens[mine]} (${mine}) looks at ${best}`
      : `key ${tokens[mine]} (${mine}) is looked at by ${best || "no query"}`;
    const weight = key <= queries[query] ? written(weightOf(bytes[query * K + key])) : "hidden, in the future";
    const cell = `${tokens[queries[query]]} → ${tokens[key]}: ${weight}`;
    reading.textContent = `${title}: ${looks}; cell ${cell}${exact ? "" : " (coarse: the layer is on its way)"}`;
    lines.setAttribute("aria-label", `Lines from queries on the left to keys on the right. ${reading.textContent}`);
    matrix.setAttribute("aria-label", `Matrix of weights, a row a query. Arrow keys move, Enter changes direction. ${title}`);
    onPicture.setAttribute("aria-label", `Attention over the picture. ${share.textContent}`);
  }

  // ---------------------------------------------------------------- export

  function compose(pen, colors) {
    const top = 26 + 18 + planes.length * tile() + 22;
    const title = `Attention: layer ${layers[state.row]}, ${nameOf(planes[state.plane])}`;
    pen.text(title, 8, 14, { align: "left", color: colors.ink, size: 14, bold: "bold " });
    pen.moved(8, 26, () => paintGlance(pen, colors));
    pen.moved(8, top, () => paintLines(pen, colors));
    pen.moved(LINES + 24, top, () => paintMatrix(pen, colors));
    if (patches) pen.moved(8, top + HEIGHT + 12, () => paintPicture(pen, colors));
  }

  function save(kind) {
    const colors = theme();
    const wide = Math.max(LINES + MATRIX + 32, 70 + layers.length * tile());
    const high = 26 + 18 + planes.length * tile() + 22 + HEIGHT + 14 + (patches ? pictureGrid().side + 12 : 0);
    const name = `attention-layer${layers[state.row]}-${planes[state.plane]}.${kind}`;
    if (kind === "svg") {
      const pen = svgPen(wide, high, color("--sans"));
      pen.fill(0, 0, wide, high, colors.paper, 1);
      compose(pen, colors);
      offerFile(name, new Blob([pen.source()], { type: "image/svg+xml" }));
      return;
    }
    const target = document.createElement("canvas");
    [target.width, target.height] = [2 * wide, 2 * high];
    const context = target.getContext("2d");
    context.scale(2, 2);
    const pen = canvasPen(context, color("--sans"));
    pen.fill(0, 0, wide, high, colors.paper, 1);
    compose(pen, colors);
    target.toBlob((blob) => offerFile(name, blob));
  }

  const themes = new MutationObserver(() => {
    frameHead();
    draw();
  });
  themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name"] });
  model.on("msg:custom", arrive);
  begin();
  return () => {
    themes.disconnect();
    asked.forEach((timer) => clearTimeout(timer));
    model.off("msg:custom", arrive);
  };
}

export default { render };
