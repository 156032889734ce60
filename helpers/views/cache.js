// The page side of kv_cache_explorer (helpers/views/cache.py).
// It draws the dict `view` and sends what the reader does; it decides nothing and loads nothing.

const WIDTH = 350; // of one panel, in CSS pixels
const HEIGHT = 230;

function render({ model, el }) {
  const view = () => model.get("view");
  const cursor = { layer: 0, position: 0 }; // the position counts from the beginning of the text
  const link = connect(model);
  const { send, answered } = link;

  const message = make("div", { class: "hx-message", role: "alert" });
  const spoken = make("div", { class: "hx-spoken", "aria-live": "polite" });
  const chips = make("div", { class: "hx-chips", role: "group", "aria-label": "Positions in the cache" });
  const back = make("button", { type: "button", class: "hx-back", onclick: () => send("back") }, "← Back");
  const forward = make("button", { type: "button", class: "hx-next", onclick: () => send("forward") });
  const where = make("span", { class: "hx-where" });
  const size = make("div", { class: "hx-text" });
  const reading = make("div", { class: "hx-reading", "aria-live": "polite" });
  const panels = ["keys", "values"].map((part) => {
    const canvas = make("canvas", {
      tabindex: 0, role: "img", class: `hx-${part}`, onkeydown: move, onpointermove: point, onpointerdown: point,
    });
    const bar = make("span");
    const most = make("span");
    const scale = make("div", { class: "hx-scale", "aria-hidden": "true" }, make("span", {}, "0"), bar, most);
    return { part, canvas, bar, most, box: make("div", { class: "hx-panel" }, make("h4", {}, part), canvas, scale) };
  });
  const root = make(
    "div", { class: "hx", role: "region", "aria-label": "KV cache explorer" },
    chips, make("div", { class: "hx-bar" }, back, forward, where), size,
    make("div", { class: "hx-panels" }, ...panels.map((panel) => panel.box)), reading, message, spoken,
  );
  link.page = { root, message };
  el.append(root);

  function move(event) {
    const v = view();
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
    if (steps) look(cursor.layer + steps[0], cursor.position + steps[1]);
    else if (event.key === "Home") look(cursor.layer, v.first);
    else if (event.key === "End") look(cursor.layer, v.length - 1);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  function point(event) {
    const v = view();
    const area = event.target.getBoundingClientRect();
    const x = (event.clientX - area.left) / area.width;
    const y = (event.clientY - area.top) / area.height;
    look(v.layers - 1 - Math.floor(y * v.layers), v.first + Math.floor(x * v.tokens.length));
  }

  function look(layer, position) {
    const v = view();
    cursor.layer = Math.max(0, Math.min(v.layers - 1, layer));
    cursor.position = Math.max(v.first, Math.min(v.length - 1, position));
    draw(v);
  }

  function draw(v) {
    const column = cursor.position - v.first;
    for (const { part, canvas, bar, most } of panels) {
      const sharp = window.devicePixelRatio || 1;
      canvas.width = WIDTH * sharp;
      canvas.height = HEIGHT * sharp;
      canvas.style.width = `${WIDTH}px`;
      canvas.style.height = `${HEIGHT}px`;
      const pen = canvas.getContext("2d");
      pen.scale(sharp, sharp);
      const wide = WIDTH / v.tokens.length;
      const high = HEIGHT / v.layers;
      const top = Math.max(...v[part].flat(), 1e-9);
      v[part].forEach((row, layer) => row.forEach((value, at) => {
        pen.fillStyle = v.colors[Math.round((value / top) * (v.colors.length - 1))];
        pen.fillRect(at * wide, HEIGHT - (layer + 1) * high, wide + 0.5, high + 0.5);
      }));
      pen.lineWidth = 2;
      pen.strokeStyle = "#D55E00";
      const fresh = Math.min(v.fresh, v.tokens.length);
      pen.strokeRect(WIDTH - fresh * wide + 1, 1, fresh * wide - 2, HEIGHT - 2);
      for (const [color, line] of [["#000000", 4], ["#ffffff", 2]]) {
        pen.strokeStyle = color;
        pen.lineWidth = line;
        pen.strokeRect(column * wide + 1, HEIGHT - (cursor.layer + 1) * high, Math.max(wide - 2, 2), high);
      }
      bar.style.background = `linear-gradient(90deg, ${v.colors.join(",")})`;
      most.textContent = `norm ${top.toFixed(1)}`;
      canvas.setAttribute("aria-label",
        `Norms of the ${part}, ${v.layers} layers by ${v.tokens.length} positions. Arrow keys read single cells.`);
    }
    [...chips.children].forEach((chip, at) => chip.classList.toggle("hx-here", at === column));
    const [key, value] = panels.map(({ part }) => v[part][cursor.layer][column]?.toFixed(2) ?? "not held");
    reading.textContent = `layer ${cursor.layer}, position ${cursor.position} ${v.tokens[column].label}: ` +
      `key ${key}, value ${value}`;
  }

  function update() {
    answered();
    const v = view();
    message.textContent = v.message;
    chips.replaceChildren(...v.tokens.map((token, at) => make("button", {
      type: "button",
      class: `hx-chip ${token.step < 0 ? "" : "hx-by-model"}${token.special ? " hx-special" : ""}`,
      title: `position ${v.first + at}, id ${token.id}`,
      "aria-label": `${token.label}, position ${v.first + at}: read its column`,
      onclick: () => look(cursor.layer, v.first + at),
    }, token.label)));
    where.textContent = `step ${v.index}` + (v.last > v.index ? ` of ${v.last} made` : "");
    back.disabled = v.index === 0;
    forward.disabled = !v.forward;
    forward.textContent = v.forward ? `Feed ${v.token} →` : "The end";
    size.textContent = `${v.length} positions (${v.fresh} new, framed), each layer's keys [${v.shape.join(", ")}], ` +
      `${v.bytes.toLocaleString("en")} bytes in all, ${v.growth.toLocaleString("en")} a position` +
      (v.first ? `; positions ${v.first} to ${v.length - 1} are drawn` : "");
    spoken.textContent = `Step ${v.index}: ${v.length} positions, ${v.bytes} bytes.`;
    look(cursor.layer, cursor.position);
  }

  model.on("change:view", update);
  update();
  return () => {
    answered();
    model.off("change:view", update);
  };
}

export default { render };
