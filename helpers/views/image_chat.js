// The page side of image_chat (helpers/views/image_chat.py).
// It draws the dict `view` and sends what the reader does; only the drawing board lives here.

const SIDE = 300; // of the picture, in CSS pixels
const LARGEST = 8e6; // bytes of an upload; a message to the kernel must stay below 10 MB
const SHAPES = ["circle", "square", "triangle", "star"];
const SIZES = { small: 0.1, "middle-sized": 0.15, large: 0.21 };
const PLACES = ["top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right"];
const SIGNS = { circle: "●", square: "■", triangle: "▲", star: "★", pen: "✎" };

// The drawing board: marks on a white square, all places and sizes in fractions of its side.
function board(canvas) {
  const marks = [];
  const pen = canvas.getContext("2d");
  const side = canvas.width;
  function corners({ kind, x, y, size }) {
    const [count, radii, first] = { square: [4, [1.25], Math.PI / 4], triangle: [3, [1.2], -Math.PI / 2],
      star: [10, [1.2, 0.5], -Math.PI / 2] }[kind];
    return [...Array(count).keys()].map((n) => {
      const angle = first + (2 * Math.PI * n) / count;
      const radius = size * radii[n % radii.length];
      return [x + radius * Math.cos(angle), y + radius * Math.sin(angle)];
    });
  }
  function one(mark) {
    pen.fillStyle = pen.strokeStyle = mark.color;
    pen.beginPath();
    if (mark.kind === "pen") {
      pen.lineWidth = 0.055 * side;
      pen.lineCap = pen.lineJoin = "round";
      mark.points.forEach(([x, y], n) => (n ? pen.lineTo(x * side, y * side) : pen.moveTo(x * side, y * side)));
      if (mark.points.length === 1) pen.lineTo(mark.points[0][0] * side + 0.1, mark.points[0][1] * side);
      pen.stroke();
    } else {
      if (mark.kind === "circle") pen.arc(mark.x * side, mark.y * side, mark.size * side, 0, 2 * Math.PI);
      else corners(mark).forEach(([x, y], n) => (n ? pen.lineTo(x * side, y * side) : pen.moveTo(x * side, y * side)));
      pen.fill();
    }
  }
  return {
    marks,
    dirty: true,
    draw() {
      pen.fillStyle = "#f8f8f6";
      pen.fillRect(0, 0, side, side);
      marks.forEach(one);
    },
    png: () => new Promise((done) => canvas.toBlob((blob) => blob.arrayBuffer().then(done), "image/png")),
  };
}

function render({ model, el }) {
  const view = () => model.get("view");
  const still = () => model.get("still");
  const link = connect(model);
  const { send, answered } = link;
  const tool = { kind: "circle", color: null, size: "middle-sized" };
  let mode = "choose"; // or "upload", "draw": where the picture comes from
  let drawing = null; // the mark being drawn with the pen
  let spot = null; // [row, column] of the patch being read

  const button = (text, onclick, more = {}) => make("button", { type: "button", onclick, ...more }, text);
  const message = make("div", { class: "hx-message", role: "alert" });
  const notice = make("div", { class: "hx-notice", role: "status" });
  const spoken = make("div", { class: "hx-spoken", "aria-live": "polite" });

  // The picture, and what was looked at over it.
  const shown = make("img", { class: "hx-shown", alt: "" });
  const paper = make("canvas", { class: "hx-paper", width: 384, height: 384, "aria-hidden": "true" });
  const heat = make("canvas", { class: "hx-heat", tabindex: 0, role: "img", onkeydown: step, onpointermove: point,
    onpointerdown: press, onpointerup: lift, onpointercancel: lift });
  const stage = make("div", { class: "hx-stage" }, shown, paper, heat);
  const caption = make("div", { class: "hx-caption" });
  const sheet = board(paper);

  // Where it comes from.
  const modes = Object.entries({ choose: "Choose", upload: "Upload", draw: "Draw" }).map(([name, text]) =>
    button(text, () => show(name), { class: "hx-mode", "data-mode": name }));
  const gallery = make("div", { class: "hx-gallery", role: "group", "aria-label": "Pictures to choose from" });
  const file = make("input", { type: "file", accept: "image/*", class: "hx-spoken", tabindex: -1, "aria-hidden": "true",
    onchange: () => upload(file.files[0]) });
  const drop = make("div", { class: "hx-drop" }, button("Choose a file …", () => file.click(), { class: "hx-file" }),
    " or drop one here", file);
  const kinds = [...SHAPES, "pen"].map((kind) => button(SIGNS[kind], () => pickTool({ kind }), {
    class: "hx-tool", "data-kind": kind, title: kind === "pen" ? "pen: draw freely, a digit for example" : kind,
    "aria-label": kind }));
  const colors = make("div", { class: "hx-bar", role: "group", "aria-label": "Colour" });
  const sizes = make("select", { "aria-label": "Size", onchange: () => pickTool({ size: sizes.value }) },
    ...Object.keys(SIZES).map((size) => make("option", { selected: size === tool.size }, size)));
  const places = make("select", { "aria-label": "Place" }, ...PLACES.map((place) =>
    make("option", { selected: place === "center" }, place)));
  const add = button("", addShape, { class: "hx-add" });
  const undo = button("Undo", () => { sheet.marks.pop(); redraw(); }, { class: "hx-undo" });
  const clear = button("Clear", () => { sheet.marks.length = 0; redraw(); }, { class: "hx-clear" });
  for (const select of [sizes, places]) select.dataset.lmSuppressShortcuts = "true";
  const panels = {
    choose: make("div", {}, gallery),
    upload: drop,
    draw: make("div", { class: "hx-draw" },
      make("div", { class: "hx-bar", role: "group", "aria-label": "Shape" }, ...kinds), colors,
      make("div", { class: "hx-bar" }, sizes, places, add),
      make("div", { class: "hx-bar" }, undo, clear, make("span", { class: "hx-where" }, "or click on the sheet"))),
  };
  const without = button("Ask without a picture", () => send("leave_out"), { class: "hx-without" });
  const left = make("div", { class: "hx-left" }, stage, caption,
    make("div", { class: "hx-bar hx-modes", role: "group", "aria-label": "Where the picture comes from" }, ...modes),
    ...Object.values(panels), without);

  // The talk.
  const log = make("div", { class: "hx-log", role: "log", "aria-label": "Conversation", tabindex: 0 });
  const typed = make("input", { type: "text", class: "hx-typed", "aria-label": "Your question", placeholder: "Ask …" });
  const askButton = button("Ask", ask, { class: "hx-next hx-ask" });
  const stop = button("Stop", () => send("stop"), { class: "hx-stop" });
  const again = button("New conversation", () => send("restart"), { class: "hx-again hx-restart" });
  // While an input method composes (Chinese), Enter belongs to it.
  typed.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing) ask();
  });
  const ideas = make("div", { class: "hx-bar hx-ideas", role: "group", "aria-label": "Questions to begin with" });
  const right = make("div", { class: "hx-right" }, log, ideas, make("div", { class: "hx-write" }, typed, askButton, stop),
    make("div", { class: "hx-bar" }, again, notice));

  // Where it looked.
  const layers = make("select", { "aria-label": "Layer", onchange: look });
  const heads = make("select", { "aria-label": "Head", onchange: look });
  const moments = make("select", { "aria-label": "Moment", onchange: look },
    make("option", { value: "choosing" }, "when the word was chosen"), make("option", { value: "reading" }, "when it was read back"));
  for (const select of [layers, heads, moments]) select.dataset.lmSuppressShortcuts = "true";
  const told = make("div", { class: "hx-told" });
  const bar = make("span", { class: "hx-colors" });
  const most = make("span");
  const reading = make("div", { class: "hx-reading", "aria-live": "polite" });
  const looked = make("div", { class: "hx-looked", role: "group", "aria-label": "Where the word looked" }, told,
    make("div", { class: "hx-bar" }, make("label", {}, "layer ", layers), make("label", {}, "head ", heads), moments),
    make("div", { class: "hx-scale" }, make("span", {}, "0%"), bar, most), reading);

  const root = make("div", { class: "hx hx-chat", role: "region", "aria-label": "Chat about a picture" });
  if (still().sees ?? view().sees) root.append(make("div", { class: "hx-both" }, left, right), looked, message, spoken);
  else root.append(right, message, spoken);
  link.page = { root, message };
  el.append(root);
  drop.addEventListener("dragover", (event) => event.preventDefault());
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    upload(event.dataTransfer.files[0]);
  });

  // What the reader does.
  async function ask() {
    const text = typed.value.trim();
    if (!text || view().answering) return;
    const drawn = view().sees && mode === "draw" && !isDrawingShown();
    const buffers = drawn ? [await sheet.png()] : [];
    if (drawn) sheet.dirty = false;
    typed.value = "";
    send("ask", { text }, buffers);
  }

  async function upload(chosen) {
    if (!chosen) return;
    file.value = "";
    if (chosen.size > LARGEST) {
      message.textContent = `${chosen.name} has ${Math.round(chosen.size / 1e6)} MB; a page can send up to 8: make it smaller.`;
      return;
    }
    send("upload", { name: chosen.name }, [await chosen.arrayBuffer()]);
  }

  function show(name) {
    mode = name;
    spot = null;
    update();
  }

  function pickTool(change) {
    Object.assign(tool, change);
    drawTools();
  }

  function addShape() {
    if (tool.kind === "pen") return;
    const at = PLACES.indexOf(places.value);
    sheet.marks.push({ ...tool, size: SIZES[tool.size], x: 0.2 + 0.3 * (at % 3), y: 0.2 + 0.3 * Math.floor(at / 3) });
    redraw();
    spoken.textContent = `${add.textContent.replace("Add", "Added")}, ${places.value}. ${sheet.marks.length} on the sheet.`;
  }

  function redraw() {
    sheet.dirty = true;
    sheet.draw();
    update();
  }

  function place(event) {
    const area = heat.getBoundingClientRect();
    return [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height];
  }

  function press(event) {
    if (mode !== "draw") return point(event);
    const [x, y] = place(event);
    if (tool.kind === "pen") {
      drawing = { kind: "pen", color: tool.color, points: [[x, y]] };
      sheet.marks.push(drawing);
      heat.setPointerCapture(event.pointerId);
    } else sheet.marks.push({ ...tool, size: SIZES[tool.size], x, y });
    redraw();
  }

  function lift() {
    drawing = null;
  }

  function look() {
    const number = (select) => (select.value === "" ? null : Number(select.value));
    send("look", { layer: number(layers), head: number(heads), moment: moments.value });
  }

  // Reading single patches.
  function point(event) {
    const [x, y] = place(event);
    if (drawing) {
      drawing.points.push([x, y]);
      redraw();
    } else if (heatShown()) {
      const grid = still().grid;
      read(Math.floor(y * grid), Math.floor(x * grid));
    }
  }

  function step(event) {
    const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!by || !heatShown()) return;
    const [row, column] = spot ?? strongest();
    read(row + by[0], column + by[1]);
    event.preventDefault();
    event.stopPropagation();
  }

  function read(row, column) {
    const inside = (n) => Math.max(0, Math.min(still().grid - 1, n));
    spot = [inside(row), inside(column)];
    drawHeat();
  }

  const isDrawingShown = () => !sheet.dirty && view().picture === "your drawing"; // to the model
  const heatShown = () => view().heat !== null && (mode !== "draw" || isDrawingShown());
  const percent = (value) => `${value < 0.0995 ? (100 * value).toFixed(1) : Math.round(100 * value)}%`;

  function strongest() {
    const flat = view().heat.flat();
    const at = flat.indexOf(Math.max(...flat));
    return [Math.floor(at / still().grid), at % still().grid];
  }

  // Drawing.
  function drawHeat() {
    const sharp = window.devicePixelRatio || 1;
    heat.width = heat.height = SIDE * sharp;
    const pen = heat.getContext("2d");
    pen.scale(sharp, sharp);
    looked.hidden = !heatShown();
    if (!heatShown()) {
      heat.setAttribute("aria-label", mode === "draw" ? "Your drawing. Shapes are added by the buttons below." : caption.textContent);
      return;
    }
    const { heat: rows, word } = view();
    const { colors: map, grid } = still();
    const side = SIDE / grid;
    const top = Math.max(...rows.flat(), 1e-9);
    rows.forEach((row, y) => row.forEach((value, x) => {
      pen.globalAlpha = 0.82 - 0.52 * (value / top); // the picture shows through where it was looked at
      pen.fillStyle = map[Math.round((value / top) * (map.length - 1))];
      pen.fillRect(x * side, y * side, side + 0.4, side + 0.4);
    }));
    pen.globalAlpha = 1;
    const frame = ([row, column], lines) => lines.forEach(([color, width]) => {
      pen.strokeStyle = color;
      pen.lineWidth = width;
      pen.strokeRect(column * side + 1, row * side + 1, side - 2, side - 2);
    });
    frame(strongest(), [["#ffffff", 4], ["#D55E00", 2.5]]);
    const here = spot ?? strongest();
    if (spot) frame(spot, [["#000000", 4], ["#ffffff", 2]]);
    bar.style.background = `linear-gradient(90deg, ${map.join(",")})`;
    most.textContent = `${percent(top)} of the attention on one patch`;
    reading.textContent = `row ${here[0]}, column ${here[1]}: ${percent(rows[here[0]][here[1]])}` +
      (spot ? "" : " (the most)");
    heat.setAttribute("aria-label", `Attention of “${word}” to ${grid} by ${grid} patches. ` +
      `Most at row ${here[0]}, column ${here[1]}. Arrow keys read single patches.`);
  }

  function drawTools() {
    for (const each of kinds) each.setAttribute("aria-pressed", each.dataset.kind === tool.kind);
    for (const each of colors.children) each.setAttribute("aria-pressed", each.dataset.color === tool.color);
    const name = still().palette.find(({ color }) => color === tool.color).name;
    add.textContent = tool.kind === "pen" ? "The pen needs a pointer" : `Add a ${name} ${tool.kind}`;
    add.disabled = tool.kind === "pen";
    undo.disabled = clear.disabled = sheet.marks.length === 0;
  }

  function drawLog(v) {
    const focused = document.activeElement?.dataset?.word;
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    log.setAttribute("aria-busy", String(v.answering));
    log.replaceChildren(...v.turns.flatMap((turn, t) => {
      const asked = make("div", { class: "hx-asked" }, turn.fresh ? make("span", { class: "hx-with" }, "with the picture") : "",
        make("span", { class: "hx-said" }, turn.question));
      const last = v.answering && t === v.turns.length - 1;
      const words = turn.words.length ? turn.words.map((word, n) => {
        if (!word.pick) return word.text;
        const picked = v.picked && v.picked[0] === t && v.picked[1] === n;
        return button(word.text, () => { spot = null; send("pick", { turn: t, word: n }); }, {
          class: `hx-word${picked ? " hx-picked" : ""}`, "data-word": `${t},${n}`, "aria-pressed": String(Boolean(picked)),
          "aria-label": `${word.text.trim()}: see where it looked` });
      }) : [turn.text];
      const end = last ? make("span", { class: "hx-caret", "aria-hidden": "true" }, "▍")
        : turn.stopped ? make("span", { class: "hx-ended" }, ` (${turn.stopped})`) : "";
      return [asked, make("div", { class: "hx-answer" }, ...words, end)];
    }));
    if (!v.turns.length) log.append(make("div", { class: "hx-empty" }, v.sees
      ? "Ask about the picture. Then click a word of the answer to see where it looked." : "Ask something."));
    if (focused) log.querySelector(`[data-word="${CSS.escape(focused)}"]`)?.focus();
    if (atEnd) log.scrollTop = log.scrollHeight;
  }

  function drawSelect(select, count, chosen, name) {
    select.replaceChildren(make("option", { value: "" }, "all, the mean"), ...[...Array(count).keys()].map((n) =>
      make("option", { value: n }, name(n))));
    select.value = chosen ?? "";
  }

  function heard() {
    answered();
    message.textContent = view().message;
    update();
  }

  function update() {
    const v = view();
    const s = still();
    if (v.answering) root.setAttribute("aria-busy", "true");
    notice.textContent = v.notice;
    drawLog(v);
    askButton.hidden = v.answering;
    stop.hidden = !v.answering;
    again.disabled = v.answering || !v.turns.length;
    ideas.hidden = v.turns.length > 0;
    if (!v.sees) return;
    for (const each of modes) each.setAttribute("aria-pressed", each.dataset.mode === mode);
    for (const [name, panel] of Object.entries(panels)) panel.hidden = name !== mode;
    for (const each of gallery.children) each.setAttribute("aria-pressed", each.dataset.name === v.picture);
    const source = model.get("stage");
    paper.hidden = mode !== "draw";
    shown.hidden = mode === "draw" || !source;
    if (shown.src !== source) shown.src = source;
    shown.alt = v.picture;
    stage.classList.toggle("hx-drawing", mode === "draw");
    caption.textContent = mode === "draw" ? "your drawing" : v.picture || "no picture";
    without.hidden = mode === "draw" || !v.picture;
    if (v.heat) {
      told.replaceChildren("“", make("b", {}, v.word), `” gave ${percent(v.share)} of its attention to the picture`);
      drawSelect(layers, s.layers, v.layer, (n) => String(n));
      drawSelect(heads, s.heads, v.head, (n) => `${n} (${percent(v.shares[n])} on the picture)`);
      moments.value = v.moment;
    }
    drawTools();
    drawHeat();
  }

  function fill() {
    const s = still();
    tool.color ??= s.palette[0].color;
    gallery.replaceChildren(...s.gallery.map(({ name }) =>
      button("", () => { spot = null; send("choose", { name }); }, { class: "hx-thumb", "data-name": name, title: name, "aria-label": name })));
    s.gallery.forEach(({ name, thumbnail }, n) =>
      gallery.children[n].append(thumbnail ? make("img", { src: thumbnail, alt: "" }) : make("span", {}, name)));
    colors.replaceChildren(...s.palette.map(({ name, color }) => {
      const swatch = button("", () => pickTool({ color }), { class: "hx-swatch", "data-color": color, title: name, "aria-label": name });
      swatch.style.background = color;
      return swatch;
    }));
    ideas.replaceChildren(...s.questions.map((text) => button(text, () => { typed.value = text; ask(); }, { class: "hx-idea" })));
    sheet.draw();
    heard();
  }

  model.on("change:view", heard);
  model.on("change:stage", update);
  model.on("change:still", fill);
  fill();
  return () => {
    answered();
    model.off("change:view", heard);
    model.off("change:stage", update);
    model.off("change:still", fill);
  };
}

export default { render };
