// Finding the pack's nodes: "kosmos" and Enter adds Kosmos-G Prompt, and what people look for finds it.
//
// ComfyUI sends no other names for a node before 0.8, and its front end searched names alone before 1.41: there the words
// are added to the name that the search shows, and taken off the nodes' titles again. That search finds what begins
// within the first 30 letters.
import { app } from "../../scripts/app.js";

const PROMPT = "KosmosGTextEncode";
const ALSO_CALLED = {
  [PROMPT]: ["image", "subject", "reference", "image prompt"],
  KosmosGReference: ["subject"],
};
const KNOWS_ALIASES = 41; // minor version of the front end

let known = {};
const titles = new Map(); // of the nodes whose name in the search is longer

function addWords(defs) {
  known = defs;
  for (const [name, words] of Object.entries(ALSO_CALLED)) {
    if (defs[name]) defs[name].search_aliases = [...new Set([...(defs[name].search_aliases ?? []), ...words])];
  }
  // Among names that match equally well the shorter comes first, which is Kosmos-G Blend; use counts, and more so.
  if (defs[PROMPT]) defs[PROMPT].postProcessSearchScores = ([match, ...rest]) => [match, -1, ...rest];
}

function addNames() {
  const [, minor] = String(window.__COMFYUI_FRONTEND_VERSION__ ?? "").split(".").map(Number);
  if (!(minor < KNOWS_ALIASES)) return;
  for (const [name, words] of Object.entries(ALSO_CALLED)) {
    if (!known[name]) continue;
    titles.set(name, known[name].display_name);
    known[name].display_name += ` ${words.slice(0, 3).join("/")}`;
  }
}

app.registerExtension({
  name: "KosmosG.NodeSearch",
  addCustomNodeDefs: addWords,
  registerCustomNodes: addNames,

  /** The same when R has read the nodes again. */
  refreshComboInNodes(defs) {
    addWords(defs);
    addNames();
  },

  nodeCreated(node) {
    const title = titles.get(node.comfyClass);
    if (title && node.title === known[node.comfyClass].display_name) node.title = title;
  },
});
