// The page side of hidden_state_explorer (helpers/views/hidden_states.py).
// It draws the dict `view` and sends what the reader does; it decides nothing and loads nothing.

const SVG = "http://www.w3.org/2000/svg";
const ROW = 16; // height of a layer, in CSS pixels
const SIDE = 30; // left of a grid, for the layers' numbers
const FOOT = 64; // below it, for the prompt's tokens
const HEAD = 20; // above it, for its name
const SHADES = ["#D55E00", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#0072B2"];
const COLORINGS = {
  token: "the token it says", probability: "its probability", entropy: "entropy (nats)", norm: "norm",
  change: "change from the layer below", cosine: "cosine to the chosen cell",
};
const NAMES = { "": "nothing", other: "the second prompt", changed: "the changed model" };

function render({ model, el }) {
  const view = () => model.get("view");
  const link = connect(model);
  const { send, answered } = link;
  const quiet = { "data-lm-suppress-shortcuts": "true" }; // Lab's own shortcuts keep out
  const cursor = { grid: 0, layer: 0, position: 0 };
  const pick = { layer: 0, column: 0 }; // in "who wrote here"
  let coloring = "token";
  let panels = [];

  // Parts that stay; update() fills them.
  const typed = field("hx-prompt", "Prompt", "the prompt", (text) => send("type", { text }));
  const second = field("hx-second", "Second prompt", "a second prompt to set beside it (optional)",
    (text) => send("compare_with", { text }));
  const colors = make("select", { class: "hx-coloring", ...quiet, onchange: () => { coloring = colors.value; draw(); } },
    ...Object.entries(COLORINGS).map(([value, text]) => make("option", { value }, text)));
  const beside = make("select", { class: "hx-beside", ...quiet, onchange: () => send("beside", { what: beside.value }) });
  const earlier = make("button", { type: "button", class: "hx-earlier", onclick: () => moveWindow(1) }, "← earlier");
  const later = make("button", { type: "button", class: "hx-later", onclick: () => moveWindow(-1) }, "later →");
  const part = make("span", { class: "hx-where" });
  const windowBar = make("div", { class: "hx-bar", role: "group", "aria-label": "Part of the prompt" }, earlier, part, later);
  const grids = make("div", { class: "hx-grids" });
  const legend = make("div", { class: "hx-legend" });
  const reading = make("div", { class: "hx-reading", "aria-live": "polite" });
  const cellName = make("h4");
  const top = make("div", { class: "hx-list hx-top", role: "group", "aria-label": "Ten best tokens of this cell" });
  const near = make("div", { class: "hx-list hx-near", role: "group", "aria-label": "Most similar cells of this layer" });
  const nearName = make("h4");
  const wroteName = make("h4");
  const wrote = drawing("svg", {
    class: "hx-wrote", tabindex: 0, role: "application", "aria-roledescription": "map of heads and MLPs", ...quiet,
  });
  wrote.addEventListener("keydown", movePick);
  wrote.addEventListener("pointermove", (event) => { if (pointPick(event)) readPick(); });
  wrote.addEventListener("pointerdown", (event) => { if (pointPick(event)) { readPick(); togglePick(); } });
  const wroteReading = make("div", { class: "hx-small", "aria-live": "polite" });
  const wroteBest = make("div", { class: "hx-list hx-best", role: "group", "aria-label": "Largest writers" });
  const actions = make("div", { class: "hx-bar hx-actions", role: "group", "aria-label": "Change the model at this cell" });
  const towards = make("input", { type: "text", "aria-label": "Steer towards this text", placeholder: "towards: I love it" });
  const away = make("input", { type: "text", "aria-label": "Steer away from this text", placeholder: "away from: I hate it" });
  const steer = make("button", { type: "button", class: "hx-steer", onclick: steering });
  for (const input of [towards, away]) onEnter(input, steering);
  const changes = make("div", { class: "hx-changes", role: "group", "aria-label": "Changes to the model" });
  const code = make("code", { class: "hx-code" });
  const next = make("div", { class: "hx-list hx-candidates", role: "group", "aria-label": "Next token" });
  const nextName = make("h4");
  const writeOn = make("button", { type: "button", class: "hx-writeon", onclick: () => send("write_on") }, "Write on →");
  const texts = make("div", { class: "hx-texts", "aria-live": "polite" });
  const message = make("div", { class: "hx-message", role: "alert" });
  const spoken = make("div", { class: "hx-spoken", "aria-live": "polite" });
  const saving = ["PNG", "SVG"].map((kind) => make("button", {
    type: "button", class: `hx-${kind.toLowerCase()}`, "aria-label": `Save the grids as ${kind}`,
    onclick: () => save(kind),
  }, kind));
  const root = make("div", { class: "hx hx-states", role: "region", "aria-label": "Hidden state explorer" },
    typed.row, second.row, message,
    make("div", { class: "hx-bar" }, make("label", {}, "colour: ", colors), make("label", {}, "beside it: ", beside),
      make("span", { class: "hx-space" }), ...saving),
    windowBar, grids, legend, reading,
    make("div", { class: "hx-columns" },
      make("section", {}, cellName, top),
      make("section", {}, wroteName, make("div", { class: "hx-who" }, wrote, wroteBest), wroteReading),
      make("section", {}, nearName, near)),
    make("div", { class: "hx-columns hx-lower" },
      make("section", { class: "hx-change" }, make("h4", {}, "Change something"), actions,
        make("div", { class: "hx-bar hx-steering" }, towards, away, steer), changes, code),
      make("section", {}, nextName, next, make("div", { class: "hx-bar" }, writeOn), texts)),
    spoken);
  link.page = { root, message };
  el.append(root);

  // One row for each line, up to six. A text that nobody changed is sent as it came: boxes rewrite a "\r".
  function field(name, label, placeholder, run) {
    const input = make("textarea", {
      class: `hx-typed ${name}`, rows: 1, "aria-label": label, placeholder, title: "Enter runs, Shift+Enter begins a line",
      ...quiet, oninput: fit, onkeydown: breakLine,
    });
    let came = "";
    let shown = "";
    function fit() {
      input.rows = Math.min(6, input.value.split("\n").length);
    }
    function breakLine(event) { // by hand: Lab calls off what Shift+Enter would put in
      if (event.key !== "Enter" || !event.shiftKey || event.isComposing) return;
      event.preventDefault();
      input.setRangeText("\n", input.selectionStart, input.selectionEnd, "end");
      fit();
    }
    function fill(text) {
      input.value = text;
      [came, shown] = [text, input.value];
      fit();
    }
    const go = () => run(input.value === shown ? came : input.value);
    onEnter(input, go);
    const button = make("button", { type: "button", class: `${name}-run`, onclick: go }, name === "hx-prompt" ? "Run" : "Set beside");
    return { fill, row: make("div", { class: "hx-write" }, input, button) };
  }

  function onEnter(input, act) {
    // While an input method composes (Chinese), Enter belongs to it.
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      act();
    });
  }

  // ------------------------------------------------------------------ which positions are shown

  function moveWindow(way) {
    const { size, after, farthest } = view().window;
    const step = Math.floor((2 * size) / 3); // a third stays in sight
    send("window", { after: Math.max(0, Math.min(farthest, after + way * step)) });
  }

  function drawWindow(v) {
    const { after, farthest } = v.window;
    windowBar.style.display = farthest ? "" : "none";
    const words = ({ name, first, tokens, length }) =>
      `${v.grids.length > 1 ? `${name}: ` : ""}positions ${first} to ${first + tokens.length - 1} of ${length}`;
    part.textContent = v.grids.map(words).join("; ");
    earlier.disabled = after >= farthest;
    later.disabled = after === 0;
  }

  // ------------------------------------------------------------------ grids

  // What is drawn: the prompt, what is beside it, and their difference, each as values and texts by layer and column.
  function layouts(v) {
    const shown = v.grids.map((grid, n) => ({
      name: grid.name, grid: n, first: grid.first, tokens: grid.tokens, texts: grid.says,
      values: coloring === "cosine" ? v.cell.cosine[n] : coloring === "token" ? null : grid[coloring],
      kind: coloring,
    }));
    if (shown.length < 2) return shown;
    const [a, b] = v.grids;
    const shift = b.length - a.length; // matched from the end
    const from = Math.max(a.first, b.first - shift);
    const until = Math.min(a.first + a.tokens.length, b.first + b.tokens.length - shift);
    if (until <= from) return shown;
    const ofA = (row) => row.slice(from - a.first, until - a.first);
    const ofB = (row) => row.slice(from + shift - b.first, until + shift - b.first);
    const [saysA, saysB] = [a.says.map(ofA), b.says.map(ofB)];
    const difference = (one, two, far) => two.map((row, layer) => {
      const others = ofA(one[layer]);
      return ofB(row).map((value, at) => (value === null || others[at] === null ? null : far(value, others[at])));
    });
    const values = coloring === "token" ? v.apart : difference(...shown.map((grid) => grid.values),
      coloring === "norm" ? (value, other) => Math.log2(value / other) : (value, other) => value - other);
    const tokens = ofB(b.tokens).map((token, at) => {
      const other = ofA(a.tokens)[at];
      return token === other ? token : `${cut(other, 6)}→${cut(token, 6)}`;
    });
    return [...shown, {
      name: "difference", grid: 1, first: from + shift, tokens, kind: coloring === "token" ? "apart" : "difference",
      texts: saysB.map((row, layer) => row.map((text, at) => (text === saysA[layer][at] ? "=" : text))), values,
    }];
  }

  function scaleOf(kind, v, all) {
    const numbers = all.flatMap((grid) => grid.values ? grid.values.flat() : []).filter((value) => value !== null);
    if (kind === "probability" || kind === "change" || kind === "apart") return { low: 0, high: 1, colors: v.colors };
    if (kind === "entropy") return { low: 0, high: v.most_entropy, colors: v.colors };
    if (kind === "norm") {
      const logs = numbers.map((value) => Math.log10(Math.max(value, 1e-9)));
      return { low: lowest(logs), high: largest(logs), colors: v.colors, log: true };
    }
    if (kind === "cosine") return { low: -1, high: 1, colors: v.differences };
    const most = largest(numbers.map(Math.abs)) || 1;
    return { low: -most, high: most, colors: v.differences };
  }

  const largest = (numbers) => numbers.reduce((most, n) => Math.max(most, n), -Infinity);
  const lowest = (numbers) => numbers.reduce((least, n) => Math.min(least, n), Infinity);

  function colorOf(value, scale) {
    if (value === null) return null;
    const at = (scale.log ? Math.log10(Math.max(value, 1e-9)) : value) - scale.low;
    const share = Math.max(0, Math.min(1, at / (scale.high - scale.low || 1)));
    return scale.colors[Math.round(share * (scale.colors.length - 1))];
  }

  const bright = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16))
    .reduce((sum, part, n) => sum + part * [0.299, 0.587, 0.114][n], 0) > 135;

  // The tokens that most cells say get a colour each; the label stands in every cell anyway.
  function shades(v) {
    const counts = new Map();
    const answers = new Set(v.grids.map((grid) => grid.says.at(-1).at(-1)));
    const lastRows = new Set(v.grids.flatMap((grid) => grid.says.at(-1)));
    for (const grid of v.grids) for (const row of grid.says) for (const text of row) counts.set(text, (counts.get(text) || 0) + 1);
    const rest = [...counts].filter(([text, n]) => n > 1 && !answers.has(text))
      .sort((a, b) => lastRows.has(b[0]) - lastRows.has(a[0]) || b[1] - a[1]).map(([text]) => text);
    return new Map([...answers, ...rest].slice(0, SHADES.length).map((text, n) => [text, tint(SHADES[n])]));
  }

  const tint = (hex) => "#" + [1, 3, 5]
    .map((at) => Math.round(255 - 0.55 * (255 - parseInt(hex.slice(at, at + 2), 16))).toString(16).padStart(2, "0")).join("");

  function draw() {
    const v = view();
    const all = layouts(v);
    const shown = all.filter((grid) => grid.kind === coloring);
    const scale = coloring === "token" ? null : scaleOf(coloring, v, shown);
    const tints = shades(v);
    const columns = largest(all.map((grid) => grid.tokens.length));
    const room = (root.clientWidth || 900) - 30;
    const wide = Math.max(42, Math.min(all.length > 1 ? 62 : 84, (room / all.length - SIDE - 14) / columns));
    panels = all.map((grid) => {
      const own = grid.kind === coloring ? scale : scaleOf(grid.kind, v, [grid]);
      return { ...grid, wide, scale: own, svg: drawGrid(v, grid, wide, own, tints) };
    });
    const fromEnd = grids.children.length ? endOf(grids.children[0]) : 0;
    const focused = [...grids.querySelectorAll("svg")].indexOf(document.activeElement);
    grids.replaceChildren(...panels.map((panel) => make("div", {
      class: "hx-grid", onscroll: ({ target }) => {
        target.querySelector(".hx-side").setAttribute("transform", `translate(${target.scrollLeft} 0)`);
        scrollAll(endOf(target), target);
      },
    }, panel.svg)));
    scrollAll(fromEnd);
    if (focused >= 0) panels[Math.min(focused, panels.length - 1)].svg.focus({ preventScroll: true });
    legend.replaceChildren(...legends(v, scale, tints));
    look(false);
  }

  // All grids scroll together, matched from the end.
  const endOf = (box) => box.scrollWidth - box.clientWidth - box.scrollLeft;

  function scrollAll(fromEnd, already) {
    for (const box of grids.children) {
      if (box !== already && Math.abs(endOf(box) - fromEnd) > 1) box.scrollLeft = box.scrollWidth - box.clientWidth - fromEnd;
    }
  }

  function drawGrid(v, grid, wide, scale, tints) {
    const rows = grid.texts.length;
    const width = SIDE + wide * grid.tokens.length + 4;
    const height = HEAD + rows * ROW + FOOT;
    const svg = drawing("svg", {
      class: "hx-map", width, height, viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "application",
      "aria-roledescription": "grid of layers by positions", ...quiet,
      "aria-label": `${grid.name || "prompt"}: ${rows} layers by ${grid.tokens.length} positions, coloured by ` +
        `${COLORINGS[coloring]}. Arrow keys read cells, Enter looks into one.`,
      "font-family": "DejaVu Sans Mono, Menlo, Consolas, Noto Sans Mono CJK SC, Noto Sans CJK SC, monospace",
    });
    const side = drawing("g", { class: "hx-side" }, // stays in sight when the grid is scrolled
      drawing("rect", { width: SIDE - 2, height: HEAD + rows * ROW, fill: "var(--paper)" }),
      drawing("text", { x: SIDE, y: 13, "font-size": 12, "font-weight": 600, fill: "var(--muted)" }, grid.name || "prompt"));
    const fits = Math.floor((wide - 4) / 6.1);
    for (let layer = 0; layer < rows; layer += 1) {
      const y = HEAD + (rows - 1 - layer) * ROW;
      if (rows <= 16 || layer % 2 === 0) {
        side.append(drawing("text", {
          x: SIDE - 5, y: y + 12, "font-size": 10, "text-anchor": "end", fill: "var(--muted)",
        }, String(layer)));
      }
      grid.texts[layer].forEach((text, at) => {
        const value = grid.values ? grid.values[layer][at] : null;
        const fill = grid.values ? colorOf(value, scale) : tints.get(text);
        const ends = grid.kind !== "difference" && grid.kind !== "apart" && text === grid.texts[rows - 1][at];
        svg.append(
          drawing("rect", { x: SIDE + at * wide, y, width: wide - 1, height: ROW - 1, fill: fill || "var(--shade)" }),
          drawing("text", {
            x: SIDE + at * wide + (wide - 1) / 2, y: y + 11.5, "font-size": 10, "text-anchor": "middle",
            "font-weight": ends ? 700 : 400, fill: fill ? (bright(fill) ? "#111" : "#fff") : "var(--ink)",
          }, cut(text, fits)),
        );
      });
    }
    const foot = HEAD + rows * ROW;
    grid.tokens.forEach((token, at) => {
      const x = SIDE + (at + 0.5) * wide;
      svg.append(drawing("text", {
        x, y: foot + 8, "font-size": 10.5, "text-anchor": "end", fill: "var(--ink)", transform: `rotate(-42 ${x} ${foot + 8})`,
      }, cut(token, 13)));
    });
    svg.append(side, drawing("rect", {
      class: "hx-cursor", width: wide + 1, height: ROW + 1, fill: "none", stroke: "var(--vermillion)", "stroke-width": 2.5, rx: 2,
    }));
    svg.addEventListener("keydown", (event) => move(event, grid));
    svg.addEventListener("pointermove", (event) => { if (point(event, svg, grid, wide)) readCell(grid, hover); });
    svg.addEventListener("pointerleave", () => look(false));
    svg.addEventListener("pointerdown", (event) => {
      if (!point(event, svg, grid, wide)) return;
      Object.assign(cursor, hover);
      look(true);
    });
    return svg;
  }

  const hover = { grid: 0, layer: 0, position: 0 };

  function point(event, svg, grid, wide) {
    const area = svg.getBoundingClientRect();
    const at = Math.floor((event.clientX - area.left - SIDE) / wide);
    const row = Math.floor((event.clientY - area.top - HEAD) / ROW);
    const onSide = event.clientX < svg.parentNode.getBoundingClientRect().left + SIDE;
    if (onSide || at < 0 || at >= grid.tokens.length || row < 0 || row >= grid.texts.length) return false;
    Object.assign(hover, { grid: grid.grid, layer: grid.texts.length - 1 - row, position: grid.first + at });
    return true;
  }

  function move(event, grid) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
    const end = grid.first + grid.tokens.length - 1;
    if (cursor.grid !== grid.grid) Object.assign(cursor, { grid: grid.grid, position: Math.min(end, Math.max(grid.first, cursor.position)) });
    if (step) {
      cursor.layer = Math.max(0, Math.min(grid.texts.length - 1, cursor.layer + step[0]));
      cursor.position = Math.max(grid.first, Math.min(end, cursor.position + step[1]));
    } else if (event.key === "Home") cursor.position = grid.first;
    else if (event.key === "End") cursor.position = end;
    else if (event.key === "PageUp") cursor.layer = grid.texts.length - 1;
    else if (event.key === "PageDown") cursor.layer = 0;
    else if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    event.stopPropagation();
    look(event.key === "Enter" || event.key === " ");
  }

  // Move the frames to the cursor; `ask` also has the kernel look into the cell.
  function look(ask) {
    for (const panel of panels) {
      const frame = panel.svg.querySelector(".hx-cursor");
      const at = cursor.position - panel.first;
      const inside = panel.grid === cursor.grid && at >= 0 && at < panel.tokens.length;
      frame.setAttribute("visibility", inside ? "visible" : "hidden");
      frame.setAttribute("x", SIDE + at * panel.wide - 1);
      frame.setAttribute("y", HEAD + (panel.texts.length - 1 - cursor.layer) * ROW - 1);
      if (inside) {
        readCell(panel, cursor);
        const box = panel.svg.parentNode;
        const x = SIDE + at * panel.wide;
        if (x < box.scrollLeft + SIDE) box.scrollLeft = x - SIDE;
        else if (x + panel.wide > box.scrollLeft + box.clientWidth) box.scrollLeft = x + panel.wide - box.clientWidth;
      }
    }
    if (ask) send("look", { ...cursor });
  }

  function readCell(grid, { layer, position }) {
    const column = position - grid.first;
    if (column < 0 || column >= grid.tokens.length) return;
    const parts = Object.keys(COLORINGS).filter((kind) => !["token", "cosine"].includes(kind))
      .map((kind) => [kind, view().grids[grid.grid][kind][layer][position - view().grids[grid.grid].first]])
      .map(([kind, value]) => `${kind} ${value === null ? "–" : value}`);
    const own = grid.values && !["probability", "entropy", "norm", "change"].includes(grid.kind)
      ? `; ${{ apart: "distance over norm", difference: "difference" }[grid.kind] || grid.kind} ${format(grid.values[layer][column])}` : "";
    reading.textContent = `layer ${layer}, position ${position} ${grid.tokens[column]}: says ${view().grids[grid.grid].says[layer][position - view().grids[grid.grid].first]}; ` +
      parts.join(", ") + own;
  }

  const format = (value) => (value === null ? "–" : Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3));

  function legends(v, scale, tints) {
    const notes = panels.length > 2 ? [make("span", { class: "hx-note" },
      coloring === "token" ? "difference: distance of the two states over their norm, 0 to 1; = where both say the same"
        : coloring === "norm" ? "difference: log2 of the ratio, red where the right one is larger"
          : "difference: right minus left, red above 0; matched from the end")] : [];
    const rows = make("span", { class: "hx-note" }, "row 0: embedding; bold: already what the top row says");
    if (!scale) {
      return [...[...tints].map(([text, color]) => {
        const chip = make("span", { class: "hx-chip" }, text);
        chip.style.background = color;
        chip.style.color = "#111";
        return chip;
      }), rows, ...notes];
    }
    const bar = make("span", { class: "hx-ramp", "aria-hidden": "true" });
    bar.style.background = `linear-gradient(90deg, ${scale.colors.join(",")})`;
    const [low, high] = [scale.low, scale.high].map((value) => (scale.log ? 10 ** value : value));
    const end = coloring === "change" ? `${format(high)} or more` : format(high);
    return [make("span", {}, `${COLORINGS[coloring]}: ${format(low)}`), bar, make("span", {}, end), rows, ...notes];
  }

  // ------------------------------------------------------------------ one cell

  function bar(share, color) {
    const fill = make("span", { class: "hx-fill" });
    fill.style.width = `${100 * Math.max(0, Math.min(1, share))}%`;
    fill.style.background = color;
    return make("span", { class: "hx-track" }, fill);
  }

  function drawCell(v) {
    const { cell } = v;
    const where = `layer ${cell.layer}, position ${cell.position} ${cell.token}`;
    cellName.textContent = `Says at ${where}`;
    const most = cell.top[0].p;
    top.replaceChildren(...cell.top.map((row) => make("button", {
      type: "button", class: "hx-line", "aria-pressed": String(row.id === cell.asked.id),
      "aria-label": `${row.label}, ${row.text}: who wrote it?`, title: `id ${row.id}: ask who wrote it`,
      onclick: () => send("look", { grid: cell.grid, layer: cell.layer, position: cell.position, token_id: row.id }),
    }, make("span", { class: "hx-chip" }, row.label), bar(row.p / most, "var(--blue)"), make("span", { class: "hx-number" }, row.text))));
    nearName.textContent = `Most like it in layer ${cell.layer}`;
    near.replaceChildren(make("div", { class: "hx-line hx-headline" }, make("span"), make("span", { class: "hx-number" }, "cosine"),
      make("span", { class: "hx-number", title: "after the mean over all these cells is taken off" }, "centred")),
    ...cell.neighbours.map((row) => make("button", {
      type: "button", class: "hx-line", "aria-label": `position ${row.position} ${row.label}, cosine ${row.cosine}, centred ${row.centred}`,
      onclick: () => send("look", { grid: row.grid, layer: cell.layer, position: row.position }),
    }, make("span", {}, make("span", { class: "hx-chip" }, row.label),
      make("small", {}, ` ${row.position}${row.grid ? `, ${v.grids[row.grid].name}` : ""}`)),
    make("span", { class: "hx-number" }, row.cosine.toFixed(3)), make("span", { class: "hx-number" }, row.centred.toFixed(3)))));
    drawWriters(v);
  }

  const who = (v, layer, column) => `layer ${layer} ${column === v.heads ? "MLP" : `head ${column}`}`;
  const isOff = (v, layer, column) => v.ablated.some(([l, h]) => l === layer && h === column);
  const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
  const BOX = 13;
  const HIGH = 7;

  function drawWriters(v) {
    const { writers, asked, layer } = v.cell;
    wroteName.textContent = `Who wrote ${asked.label} there?`;
    wrote.style.display = wroteReading.style.display = writers.why ? "none" : "";
    if (writers.why) {
      wroteBest.replaceChildren(make("div", { class: "hx-small" }, writers.why));
      return;
    }
    const columns = v.heads + 1;
    const box = Math.max(4, Math.min(BOX, 320 / columns));
    const [width, height] = [24 + columns * box + 16, v.layers * HIGH + 26];
    for (const [name, value] of Object.entries({ width, height, viewBox: `0 0 ${width} ${height}` })) wrote.setAttribute(name, value);
    wrote.setAttribute("aria-label", `Logit of ${asked.label} written by each head and MLP below layer ${layer}. ` +
      "Arrow keys read, Enter switches a head off or on.");
    const most = largest(writers.table.flat().map(Math.abs)) || 1;
    const marks = [];
    writers.table.forEach((row, number) => row.forEach((value, column) => {
      const x = 24 + column * box + (column === v.heads ? 3 : 0);
      const y = (v.layers - 1 - number) * HIGH + 2;
      const color = number < layer ? colorOf(value, { low: -most, high: most, colors: v.differences }) : "var(--shade)";
      marks.push(drawing("rect", { x, y, width: box - 1, height: HIGH - 1, fill: color }));
      if (isOff(v, number, column)) marks.push(drawing("path", { d: `M${x} ${y}l${box - 1} ${HIGH - 1}m0 ${1 - HIGH}l${1 - box} ${HIGH - 1}`, stroke: "#000", "stroke-width": 1.5 }));
    }));
    for (let number = 0; number < v.layers; number += 5) {
      marks.push(drawing("text", { x: 20, y: (v.layers - 1 - number) * HIGH + 9, "font-size": 9, "text-anchor": "end", fill: "var(--muted)" }, String(number)));
    }
    for (const [column, text] of [[0, "head 0"], [v.heads, "MLP"]]) {
      marks.push(drawing("text", { x: 24 + column * box + (column ? 3 : 0), y: v.layers * HIGH + 14, "font-size": 9, fill: "var(--muted)" }, text));
    }
    marks.push(drawing("rect", { class: "hx-pick", width: box + 1, height: HIGH + 1, fill: "none", stroke: "var(--vermillion)", "stroke-width": 2 }));
    wrote.replaceChildren(...marks);
    wrote.dataset.box = box;
    if (pick.layer >= v.layers) pick.layer = v.layers - 1;
    wroteBest.replaceChildren(...writers.best.slice(0, 8).map(([number, column]) => {
      const value = writers.table[number][column];
      const parts = [who(v, number, column), make("span", { class: "hx-number" }, signed(value))];
      const off = isOff(v, number, column);
      return column === v.heads
        ? make("div", { class: "hx-line" }, ...parts)
        : make("button", {
          type: "button", class: "hx-line", "aria-pressed": String(off), title: off ? "switch it on again" : "switch it off",
          "aria-label": `${who(v, number, column)}, ${signed(value)}: switch it ${off ? "on again" : "off"}`,
          onclick: () => send("toggle_head", { layer: number, head: column }),
        }, ...parts);
    }), make("div", { class: "hx-line hx-sum" }, "embedding", make("span", { class: "hx-number" }, signed(writers.embedding))),
    ...(writers.put_in ? [make("div", { class: "hx-line hx-sum" }, "put in by hand", make("span", { class: "hx-number" }, signed(writers.put_in)))] : []),
    ...(Math.abs(writers.rest) >= 0.005 ? [make("div", { class: "hx-line hx-sum" }, "biases, and what is neither head nor MLP", make("span", { class: "hx-number" }, signed(writers.rest)))] : []),
    make("div", { class: "hx-line hx-sum" }, "logit, all together", make("span", { class: "hx-number" }, signed(writers.total))));
    readPick();
  }

  function pointPick(event) {
    const v = view();
    const area = wrote.getBoundingClientRect();
    const column = Math.floor((event.clientX - area.left - 24) / Number(wrote.dataset.box));
    const row = Math.floor((event.clientY - area.top - 2) / HIGH);
    if (column < 0 || column > v.heads || row < 0 || row >= v.layers) return false;
    Object.assign(pick, { layer: v.layers - 1 - row, column });
    return true;
  }

  function movePick(event) {
    const v = view();
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
    if (step) {
      pick.layer = Math.max(0, Math.min(v.layers - 1, pick.layer + step[0]));
      pick.column = Math.max(0, Math.min(v.heads, pick.column + step[1]));
    } else if (event.key === "Enter" || event.key === " ") togglePick();
    else return;
    event.preventDefault();
    event.stopPropagation();
    readPick();
  }

  function togglePick() {
    if (pick.column < view().heads) send("toggle_head", { layer: pick.layer, head: pick.column });
    else send("skip", { layer: pick.layer, part: "mlp" });
  }

  function readPick() {
    const v = view();
    if (v.cell.writers.why) return;
    const box = Number(wrote.dataset.box);
    const frame = wrote.querySelector(".hx-pick");
    frame.setAttribute("x", 24 + pick.column * box + (pick.column === v.heads ? 3 : 0) - 1);
    frame.setAttribute("y", (v.layers - 1 - pick.layer) * HIGH + 1);
    const value = v.cell.writers.table[pick.layer][pick.column];
    wroteReading.textContent = `${who(v, pick.layer, pick.column)}: ` +
      (pick.layer < v.cell.layer ? `${signed(value)} to the logit; click or Enter switches it off` : "writes only after this cell");
  }

  // ------------------------------------------------------------------ changes and the next token

  function steering() {
    send("steer", { layer: view().cell.layer, towards: towards.value, away: away.value, scale: 1 });
  }

  function drawActions(v) {
    const { layer, patch } = v.cell;
    const writer = Math.max(0, layer - 1); // the layer whose output this row is
    const act = (text, command, values, name) => make("button", { type: "button", class: name, onclick: () => send(command, values) }, text);
    actions.replaceChildren(
      act(`Skip layer ${writer}`, "skip", { layer: writer, part: "layer" }, "hx-skip-layer"),
      act("its attention", "skip", { layer: writer, part: "attention" }, "hx-skip-attention"),
      act("its MLP", "skip", { layer: writer, part: "mlp" }, "hx-skip-mlp"),
      ...(patch ? [act(`Patch ${patch.token} (${patch.position}) at layer ${layer} from the second prompt`, "patch",
        { layer, position: patch.position }, "hx-patch")] : []),
    );
    steer.textContent = `Steer at layer ${layer}`;
  }

  function drawChanges(v) {
    const active = document.activeElement;
    const held = changes.contains(active) && active.type === "range" ? [...changes.querySelectorAll("input")].indexOf(active) : -1;
    if (held >= 0 && changes.children.length === v.changes.length) {
      return; // a slider under the reader's hand stays where it is
    }
    changes.replaceChildren(...v.changes.map((change, index) => {
      const parts = [make("span", { class: "hx-what" }, change.text)];
      if (change.scale !== null) {
        const output = make("output", {}, String(change.scale));
        const input = make("input", {
          type: "range", min: -v.strength, max: v.strength, step: 0.25, "aria-label": `Strength: ${change.text}`,
          oninput: () => {
            output.textContent = input.value;
            send("change", { index, scale: input.valueAsNumber });
          },
        });
        input.value = change.scale;
        parts.push(input, output);
      }
      parts.push(make("button", {
        type: "button", class: "hx-remove", "aria-label": `Take back: ${change.text}`, title: "take back",
        onclick: () => send("remove", { index }),
      }, "✕"));
      return make("div", { class: "hx-changed" }, ...parts);
    }));
  }

  function drawNext(v) {
    const changed = v.changes.length > 0;
    nextName.replaceChildren("Next token", ...(changed
      ? [": ", make("span", { class: "hx-dot hx-dot-before", "aria-hidden": "true" }), "before ",
        make("span", { class: "hx-dot hx-dot-after", "aria-hidden": "true" }), "with the changes"] : []));
    const most = largest(v.candidates.flatMap((row) => row.p)) || 1;
    next.replaceChildren(...v.candidates.map((row) => make("div", {
      class: `hx-line ${changed ? "hx-two" : ""}`, role: "img",
      "aria-label": `${row.label}: ${row.text[0]}${changed ? ` before, ${row.text[1]} with the changes` : ""}`,
    }, make("span", { class: "hx-chip" }, row.label),
    make("span", { class: "hx-bars" }, bar(row.p[0] / most, changed ? "var(--muted)" : "var(--blue)"),
      ...(changed ? [bar(row.p[1] / most, "var(--vermillion)")] : [])),
    ...row.text.map((text) => make("span", { class: "hx-number" }, text)))));
    texts.replaceChildren(...v.texts.map((text, n) => make("div", { class: "hx-text" },
      make("b", {}, n ? "changed: " : changed ? "before: " : ""), `… ${text.trim()}`)));
  }

  // ------------------------------------------------------------------ saving

  function picture() {
    const look = getComputedStyle(root);
    const [gap, title] = [12, 26];
    const width = panels.reduce((sum, panel) => sum + Number(panel.svg.getAttribute("width")) + gap, gap);
    const height = largest(panels.map((panel) => Number(panel.svg.getAttribute("height")))) + title + 8;
    const whole = drawing("svg", { xmlns: SVG, width, height, viewBox: `0 0 ${width} ${height}` });
    whole.append(drawing("rect", { width, height, fill: "var(--paper)" }), drawing("text", {
      x: gap, y: 18, "font-size": 13, "font-family": "sans-serif", fill: "var(--ink)",
    }, cut(`${view().title} (colour: ${COLORINGS[coloring]})`, Math.floor(width / 7))));
    let x = gap;
    for (const panel of panels) {
      const copy = panel.svg.cloneNode(true);
      copy.querySelector(".hx-side").removeAttribute("transform");
      for (const name of ["tabindex", "role", "class"]) copy.removeAttribute(name);
      copy.setAttribute("x", x);
      copy.setAttribute("y", title);
      whole.append(copy);
      x += Number(panel.svg.getAttribute("width")) + gap;
    }
    for (const node of whole.querySelectorAll("*")) {
      for (const name of ["fill", "stroke"]) {
        const asked = /^var\((--\w+)\)$/.exec(node.getAttribute(name) || "");
        if (asked) node.setAttribute(name, look.getPropertyValue(asked[1]).trim());
      }
    }
    return { source: new XMLSerializer().serializeToString(whole), width, height };
  }

  async function save(kind) {
    const { source, width, height } = picture();
    const svg = new Blob([source], { type: "image/svg+xml" });
    if (kind === "SVG") return offerFile("hidden_states.svg", svg);
    const image = new Image();
    image.src = URL.createObjectURL(svg);
    await image.decode();
    const canvas = make("canvas", { width: 2 * width, height: 2 * height });
    canvas.getContext("2d").drawImage(image, 0, 0, 2 * width, 2 * height);
    URL.revokeObjectURL(image.src);
    canvas.toBlob((blob) => offerFile("hidden_states.png", blob));
  }

  function drawing(tag, attributes = {}, ...children) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  // As much of a text as `fits` Latin letters take; Chinese ones are twice as wide.
  function cut(text, fits) {
    let used = 0;
    let kept = "";
    for (const character of text) {
      used += character.codePointAt(0) > 0x2e7f ? 1.8 : 1;
      if (used > fits) return kept ? `${kept.slice(0, -1)}…` : "…";
      kept += character;
    }
    return kept;
  }

  // ------------------------------------------------------------------ the kernel has answered

  function update() {
    answered();
    const v = view();
    message.textContent = v.message;
    if (!v.message) { // what cannot be run stays where it was typed
      typed.fill(v.prompt);
      second.fill(v.other);
    }
    beside.replaceChildren(...v.choices.map((value) => make("option", { value }, NAMES[value])));
    beside.value = v.beside;
    Object.assign(cursor, { grid: v.cell.grid, layer: v.cell.layer, position: v.cell.position });
    drawCell(v);
    drawActions(v);
    drawChanges(v);
    code.textContent = v.code;
    drawNext(v);
    drawWindow(v);
    draw();
    spoken.textContent = `Next: ${v.candidates[0].label} ${v.candidates[0].text.join(", with the changes ")}.`;
    link.goOn();
  }

  model.on("change:view", update);
  let width = 0; // drawing changes the height: only another width is a reason to draw again
  const resized = new ResizeObserver(() => {
    if (root.clientWidth !== width) draw();
    width = root.clientWidth;
  });
  update();
  resized.observe(root);
  return () => {
    answered();
    resized.disconnect();
    model.off("change:view", update);
  };
}

export default { render };
