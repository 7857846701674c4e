// The prompt box of Kosmos-G Prompt: marks as chips over ComfyUI's own text boxes, and a line below them.
//
// The text boxes stay what they are: what is typed, undone, copied and saved is their plain text, and where anything
// here fails they still work. A layer above each draws its chips, brackets and weights; one DOM widget at the end of
// the node shows the connected images and the line. Grammar and counts are the server's (POST /kosmos_g/prompt); the
// lexer here only says where to draw. Both renderers of nodes are served: the canvas and Nodes 2.0.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { fitInputs } from "./growing_inputs.js";
import { TextField, hasFiles, imagesIn } from "./prompt_field.js";
import { SLOTS, checkpointOf, connectedImages, fileOf, misfits, widgetOf } from "./prompt_graph.js";
import { pieces } from "./prompt_grammar.js";
import { COLOURS, STYLE } from "./prompt_style.js";
import { said } from "./sentences.js";

const NODE = "KosmosGTextEncode";
const COLOUR = { color: "#233", bgcolor: "#355" }; // of the pack's nodes, as in its workflows
const LEAST_HEIGHT = { text: 90, negative: 66 }; // pixels of the boxes with their margins, so that the line leaves them room
const MARGIN = 8; // pixels round the status
const LONGEST = 2048; // tokens of a training sequence

/** All that is drawn on one Kosmos-G Prompt. */
class PromptBox {
  constructor(node) {
    Object.assign(this, { node, images: [], answer: null, asked: "", signature: "", problem: "" });
    this.fields = ["text", "negative"].map((name) => new TextField(this, name));
    this.last = this.fields[0];
    for (const field of this.fields) {
      if (field.widget?.options) field.widget.options.getMinHeight ??= () => LEAST_HEIGHT[field.name];
    }
    this.status = document.createElement("div");
    this.status.className = "kosmos-g-status";
    const widget = node.addDOMWidget("kosmos_g_status", "kosmos_g_status", this.status, {
      serialize: false, hideOnZoom: true, margin: MARGIN, getValue: () => "", setValue: () => {},
      getMinHeight: () => this.height, getMaxHeight: () => this.height,
    });
    widget.serialize = false; // what is saved are the boxes' texts alone
    this.height = 60;
    // Dropping on the node beside its boxes; ComfyUI asks both.
    node.onDragOver = (event) => hasFiles(event?.dataTransfer);
    node.onDragDrop = async (event) => {
      const files = imagesIn(event?.dataTransfer);
      if (files.length) await this.add(files);
      return files.length > 0;
    };
    const executed = node.onExecuted;
    node.onExecuted = (output, ...others) => {
      this.ran = output?.kosmos_g_remarks;
      return executed?.call(node, output, ...others);
    };
    const removed = node.onRemoved;
    node.onRemoved = (...all) => {
      this.close();
      return removed?.apply(node, all);
    };
    boxes.add(this);
  }

  close() {
    boxes.delete(this);
    clearTimeout(this.waiting);
    this.fields.forEach((field) => field.detach());
  }

  /** Draw what has changed. */
  refresh() {
    if (!this.node.graph) return;
    this.fields.forEach((field) => field.attach());
    fitInputs(this.node); // a mark that was just typed may name an input that is not shown
    this.images = connectedImages(this.node);
    this.ask();
    const linked = this.fields.some((field) => field.unread);
    // Of texts from elsewhere only a run knows what they hold.
    const remarks = (linked ? this.ran : this.answer?.remarks) ?? [];
    const warnings = [...remarks, ...misfits(this.node, this.answer?.width, this.images)];
    const carets = this.fields.map(({ area }) => document.activeElement === area && area?.selectionStart);
    const state = [this.fields.map((field) => [field.text, field.unread]), this.images, warnings, carets, this.answer, this.problem];
    const signature = JSON.stringify(state);
    if (signature === this.signature) return;
    this.signature = signature;
    const taken = new Set();
    const found = this.fields.map((field) => pieces(field.unread ? "" : field.text, this.images, taken));
    const unread = this.fields.map((field) => field.unread).find(Boolean);
    const unused = unread ? [] : this.images.filter((image) => !taken.has(image.slot));
    this.fields.forEach((field, number) => field.area && field.draw(found[number]));
    this.show(unused, warnings, unread);
  }

  show(unused, warnings, unread) {
    const row = document.createElement("div");
    row.className = "images";
    for (const image of this.images) {
      const button = document.createElement("button");
      const wrong = unused.includes(image);
      button.style.setProperty("--slot", COLOURS[image.slot - 1]);
      button.classList.toggle("wrong", wrong);
      button.title = said(wrong ? `image_${image.slot} (${image.name}) has no mark: click to write <i${image.slot}>, or disconnect it.`
        : `image_${image.slot}: ${image.name}. Click to write <i${image.slot}> at the caret.`);
      if (image.thumb) button.append(Object.assign(new Image(), { src: image.thumb }));
      const label = document.createElement("span");
      label.textContent = ` <i${image.slot}>${wrong ? ` ${said("no mark")}` : ""}`;
      button.append(label);
      button.addEventListener("pointerdown", (event) => event.preventDefault()); // the caret stays where it is
      button.addEventListener("click", () => this.last.insert(`<i${image.slot}>`));
      row.append(button);
    }
    const { tokens, negative_tokens: negative, error, remark } = this.answer ?? {};
    const counted = tokens == null ? [] : [`${tokens.toLocaleString("en")} of ${LONGEST.toLocaleString("en")} tokens`,
      `negative ${negative.toLocaleString("en")}`];
    const marked = this.images.length - unused.length;
    const images = this.images.length ? `${marked} of ${this.images.length} images used` : "no image connected: drop one here";
    const lines = [["line", unread ? said(unread) : [...counted, images].map(said).join(" · ")]];
    if (tokens > LONGEST) lines.push(["warning", "Longer than any sequence that the model was trained on: expect little of its end."]);
    if (this.problem) lines.push(["error", this.problem]);
    if (error && !unread) lines.push(["error", error.reason]);
    if (remark) lines.push(["warning", remark]);
    lines.push(...warnings.map((warning) => ["warning", warning]));
    this.status.replaceChildren(...(this.images.length ? [row] : []), ...lines.map(([kind, text]) => {
      const told = kind === "line" ? text : said(text);
      return Object.assign(document.createElement("div"), { className: kind, textContent: told, title: told });
    }));
    this.resize();
  }

  /** Give the status the height that it needs; the node grows, and never shrinks by it. */
  resize() {
    const width = Math.max(200, this.node.size[0] - 30);
    const copy = this.status.cloneNode(true);
    copy.style.cssText = `position: absolute; visibility: hidden; height: auto; width: ${width}px`;
    document.body.append(copy);
    const height = copy.offsetHeight + 2 * MARGIN;
    copy.remove();
    if (height === this.height) return;
    this.height = height;
    this.status.style.minHeight = `${height - 2 * MARGIN}px`;
    const least = this.node.computeSize?.()[1] ?? 0;
    if (this.node.size[1] < least) this.node.setSize([this.node.size[0], least]);
    this.node.graph?.setDirtyCanvas?.(true, true);
  }

  /** Ask the server for counts and errors, a moment after the last change. */
  ask() {
    const [text, negative] = this.fields.map((field) => (field.unread ? "" : field.text));
    const images = Object.fromEntries(this.images.map(({ slot, noun }) => [slot, noun]));
    const body = JSON.stringify({ text, negative, images, file: fileOf(this.node), checkpoint: checkpointOf(this.node) });
    if (body === this.asked) return;
    this.asked = body;
    clearTimeout(this.waiting);
    this.status.classList.add("waiting");
    this.waiting = setTimeout(async () => {
      let answer = null;
      try {
        const response = await api.fetchApi("/kosmos_g/prompt", { method: "POST", headers: { "Content-Type": "application/json" }, body });
        answer = await response.json();
        if (!response.ok) answer = { remark: answer.error };
      } catch { /* without the server's word the chips still stand */ }
      if (body !== this.asked) return;
      this.answer = answer;
      this.refresh();
      this.status.classList.remove("waiting");
    }, 200);
  }

  /** Upload images; each gets a Load Image, the next free input and a mark at the caret. */
  async add(files) {
    const { node } = this;
    this.problem = "";
    for (const file of files) {
      const index = node.inputs.findIndex((each, number) => /^image_[1-8]$/.test(each.name) && !node.isInputConnected(number));
      if (index < 0) {
        this.problem = `All ${SLOTS} image inputs are taken: ${file.name} was not added.`;
        break;
      }
      const form = new FormData();
      form.append("image", file);
      try {
        const response = await api.fetchApi("/upload/image", { method: "POST", body: form });
        if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
        const saved = await response.json();
        this.connect(index, saved.subfolder ? `${saved.subfolder}/${saved.name}` : saved.name);
      } catch (error) {
        this.problem = `${file.name} could not be uploaded (${error.message}).`;
        break;
      }
      this.last.insert(`<i${node.inputs[index].name.slice("image_".length)}>`);
    }
    this.refresh();
  }

  connect(index, path) {
    const { node } = this;
    const { graph } = node;
    app.canvas?.emitBeforeChange?.();
    const load = LiteGraph.createNode("LoadImage");
    load.pos = [node.pos[0] - 340, node.pos[1]];
    // A Load Image is as high as its image, once that is there.
    const bottom = (other) => other.pos[1] + Math.max(other.size[1], other.type === load.type ? 320 : 0);
    const covers = (other) => Math.abs(other.pos[0] - load.pos[0]) < 300
      && load.pos[1] < bottom(other) + 40 && other.pos[1] < load.pos[1] + 350;
    for (let tries = 0; tries < 30; tries++) {
      const other = graph._nodes.find(covers);
      if (!other) break;
      load.pos = [load.pos[0], bottom(other) + 50];
    }
    graph.add(load);
    const widget = widgetOf(load, "image");
    if (Array.isArray(widget.options?.values) && !widget.options.values.includes(path)) widget.options.values.push(path);
    widget.value = path;
    widget.callback?.(path);
    load.connect(0, node, index);
    app.canvas?.emitAfterChange?.();
  }
}

const boxes = new Set();

/** The only selected node's box, where a pasted image belongs if no text box has the focus. */
function selectedBox() {
  const chosen = Object.values(app.canvas?.selected_nodes ?? {});
  return chosen.length === 1 ? [...boxes].find((box) => box.node === chosen[0]) : null;
}

app.registerExtension({
  name: "KosmosG.PromptBox",

  setup() {
    document.head.append(Object.assign(document.createElement("style"), { textContent: STYLE }));
    document.addEventListener("paste", (event) => {
      const files = imagesIn(event.clipboardData);
      const box = /^(TEXTAREA|INPUT)$/.test(event.target?.tagName) ? null : selectedBox();
      if (!files.length || !box) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      box.add(files);
    }, true);
    // Front ends differ in how they tell of a changed link or file: looking at the graph now and then serves all.
    setInterval(() => {
      if (document.hidden) return;
      for (const box of boxes) guarded(box, () => box.refresh());
    }, 250);
  },

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("KosmosG")) return;
    if (!app.configuringGraph) Object.assign(node, COLOUR); // what is loaded keeps its own
    if (node.comfyClass !== NODE) return;
    guarded(null, () => new PromptBox(node));
  },
});

/** Whatever fails, ComfyUI's own text boxes are left as they were. */
function guarded(box, act) {
  try {
    act();
  } catch (error) {
    box?.close();
    box?.status.replaceChildren();
    console.warn("Kosmos-G: the prompt box is off for this node, its text boxes work.", error);
  }
}
