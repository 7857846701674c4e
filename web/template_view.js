// The pack's workflows open as large as the window allows: below a certain scale ComfyUI draws no text, and newer front
// ends open every template with a quarter of the window left free.
//
// A workflow that is as it was shipped is told by its own view, which it holds twice; saving it changes one of them, and
// whoever saved it gets the view that was saved.
import { app } from "../../scripts/app.js";

const FREE = { left: 70, top: 136, right: 14, bottom: 14 }; // pixels that ComfyUI's own bars cover
const LEAST = 0.4; // in a small window, some of the graph is better than a stamp of it

/** The box round all nodes and groups: [left, top, right, bottom]. */
function bounds(graph) {
  const title = window.LiteGraph?.NODE_TITLE_HEIGHT ?? 30;
  const boxes = [
    ...graph._nodes.map(({ pos, size }) => [pos[0], pos[1] - title, pos[0] + size[0], pos[1] + size[1]]),
    ...(graph._groups ?? []).map(({ pos, size }) => [pos[0], pos[1], pos[0] + size[0], pos[1] + size[1]]),
  ];
  return [0, 1, 2, 3].map((side) => Math[side < 2 ? "min" : "max"](...boxes.map((box) => box[side])));
}

function fit() {
  const { ds, canvas } = app.canvas;
  const [left, top, right, bottom] = bounds(app.graph);
  const [width, height] = [canvas.clientWidth - FREE.left - FREE.right, canvas.clientHeight - FREE.top - FREE.bottom];
  const scale = Math.min(1, width / (right - left), height / (bottom - top));
  if (scale < LEAST) return;
  ds.scale = scale;
  ds.offset = [FREE.left / scale - left, FREE.top / scale - top];
  app.canvas.setDirty(true, true);
}

app.registerExtension({
  name: "KosmosG.TemplateView",

  afterConfigureGraph() {
    const { ds, kosmos_g_view: shipped } = app.graph.extra ?? {};
    const graph = app.graph;
    if (!shipped || JSON.stringify(ds) !== JSON.stringify(shipped)) return;
    // After the front end's own view, which it sets once the graph has been drawn.
    setTimeout(() => app.graph === graph && graph._nodes.length && fit(), 300);
  },
});
