// Numbered inputs, image_1 to image_8 and reference_1 to reference_8, that grow: a node shows those connected and one more,
// and those that its texts name. They are the node's own inputs, so that what is sent and saved is the same without this.
//
// ComfyUI's own growing inputs (Autogrow, from 0.8 on) would be other ones, `images.image_1`, and so another node. They
// move up when one is disconnected, so that <i2> in a text names another image; node replacement loses the links of saved
// graphs (the front end skips names with a dot) and refuses prompts in which an image is not connected; and a mark cannot
// ask for the socket that it names.
import { app } from "../../scripts/app.js";

const NUMBERED = /^(image|reference)_([1-8])$/;
const ROW = 20; // pixels of a socket's row

/** Give a node's numbered inputs that may be needed a socket, and take it from the others, unless it `onlyGrows`. */
export function fitInputs(node, onlyGrows = false) {
  const known = node.kosmosGInputs_;
  if (!known?.length) return;
  const present = new Map(node.inputs.map((input) => [input.name, input]));
  const connected = known.filter(({ name }) => present.get(name)?.link != null).map(({ number }) => number);
  const wanted = Math.max(Math.max(0, ...connected) + 1, mostNamed(node));
  for (const { name, number, type, ...options } of known) {
    if (number <= wanted && !present.has(name)) node.addInput(name, type, options);
  }
  if (onlyGrows) return;
  for (const { name, number } of [...known].reverse()) {
    const index = node.inputs.findIndex((input) => input.name === name);
    if (number > wanted && index >= 0) node.removeInput(index);
  }
}

/** The highest number that a mark in a node's texts names. */
function mostNamed(node) {
  const texts = (node.widgets ?? []).filter((widget) => ["text", "negative"].includes(widget.name)).map((widget) => String(widget.value ?? ""));
  return Math.max(0, ...texts.flatMap((text) => [...text.matchAll(/<(?:i|image)_?0*([1-8])>/g)].map((mark) => Number(mark[1]))));
}

function guarded(node, onlyGrows = false) {
  try {
    if (!app.configuringGraph) fitInputs(node, onlyGrows);
  } catch (error) {
    node.kosmosGInputs_ = [];
    console.warn("Kosmos-G: this node shows all its inputs.", error);
  }
}

/** Give a node that has no links yet the sockets of its copy, in their order: what is pasted is connected by number. */
function takeSockets(node, copied) {
  const order = new Map((copied ?? []).map(({ name }, number) => [name, number]));
  for (const { name, number, type, ...options } of node.kosmosGInputs_) {
    const index = node.inputs.findIndex((input) => input.name === name);
    if (order.has(name) && index < 0) node.addInput(name, type, options);
    if (!order.has(name) && index >= 0) node.removeInput(index);
  }
  const place = ({ name }) => order.get(name) ?? order.size;
  node.inputs.sort((one, other) => place(one) - place(other));
}

app.registerExtension({
  name: "KosmosG.GrowingInputs",

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("KosmosG")) return;
    const numbered = (node.inputs ?? []).filter((input) => NUMBERED.test(input.name));
    if (!numbered.length) return;
    node.kosmosGInputs_ = numbered.map(({ name, type, shape, tooltip, label, localized_name }) => ({
      name, type, shape, tooltip, label, localized_name, number: Number(NUMBERED.exec(name)[2]),
    }));
    const changed = node.onConnectionsChange;
    node.onConnectionsChange = (...all) => {
      guarded(node, true); // a script may want the next one at once
      queueMicrotask(() => guarded(node)); // sockets must not move while links are being made
      return changed?.apply(node, all);
    };
    if (app.configuringGraph) return;
    const configure = node.configure;
    node.configure = function configured(copied, ...others) {
      if (!app.configuringGraph && copied?.inputs && this.inputs.every((input) => input.link == null)) takeSockets(this, copied.inputs);
      return configure.call(this, copied, ...others);
    };
    const before = node.inputs.length;
    guarded(node);
    node.size[1] -= ROW * (before - node.inputs.length);
  },

  loadedGraphNode(node) {
    if (node.kosmosGInputs_) guarded(node);
  },
});
