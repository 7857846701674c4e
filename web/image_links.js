// Inputs that take an IMAGE or a KOSMOSG_IMAGE, on front ends that take the two names for one type: up to 1.40, dragging
// from such an input to the empty canvas finds no node that gives it, and its wires are grey.
import { app } from "../../scripts/app.js";

const BOTH = "IMAGE,KOSMOSG_IMAGE";
const OFFERED = ["LoadImage", "KosmosGReference", "KosmosGLoadReference"]; // in the menu of a released link
const SPLITTING = [1, 41]; // the first front end that reads each of the two names

const isOld = () => {
  const [major, minor] = String(window.__COMFYUI_FRONTEND_VERSION__ ?? "").split(".").map(Number);
  return major < SPLITTING[0] || (major === SPLITTING[0] && minor < SPLITTING[1]);
};

app.registerExtension({
  name: "KosmosG.ImageLinks",

  setup() {
    if (!isOld()) return;
    LiteGraph.slot_types_default_in[BOTH] = OFFERED;
    const colours = LGraphCanvas.link_type_colors;
    // Whatever palette is chosen later, which would write a colour of none.
    Object.defineProperty(colours, BOTH, { get: () => colours.IMAGE, set() {}, enumerable: true, configurable: true });
    // The search box asks for the type of the input that was dragged from: for that moment it is an IMAGE.
    app.canvas.linkConnector?.events?.addEventListener("dropped-on-canvas", () => {
      const slot = app.canvas.linkConnector.renderLinks[0]?.fromSlot;
      if (slot?.type !== BOTH) return;
      slot.type = "IMAGE";
      setTimeout(() => { slot.type = BOTH; });
    }, { capture: true });
  },
});
