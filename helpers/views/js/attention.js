// The page side of attention_explorer (helpers/views/attention.py).
// `view` describes the run; a layer's weights are sent as bytes on request. All drawing happens here.

import { AttentionExplorer } from "./attention/explorer.js";
import { listen } from "./kernel.js";

/** @param {import("@anywidget/types").RenderProps<{ view: AttentionView }>} props */
function render({ model, el }) {
  const explorer = new AttentionExplorer(model.get("view"), (row) => model.send({ command: "layer", row }));
  el.append(explorer.parts.root);
  const themes = new MutationObserver(() => explorer.drawAll());
  themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name"] });
  const unlisten = listen(model, { "msg:custom": explorer.layers.arrive });
  explorer.begin();
  return () => {
    themes.disconnect();
    explorer.layers.stop();
    unlisten();
  };
}

export default { render };
