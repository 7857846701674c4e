// The prompt box of Kosmos-G Prompt: marks as chips over ComfyUI's own text boxes, and a line below them.
//
// The text boxes stay what they are: what is typed, undone, copied and saved is their plain text, and where anything
// here fails they still work. A layer above each draws its chips, brackets and weights; one DOM widget at the end of
// the node shows the connected images and the line. Grammar and counts are the server's (POST /kosmos_g/prompt); the
// lexer here only says where to draw. Both renderers of nodes are served: the canvas and Nodes 2.0.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const NODE = "KosmosGTextEncode";
const SLOTS = 8;
const LEXEME = /\\[\\<():]|<(?:i|image)(?:_?[0-9]+)?>|[():]|[^\\<():]+|[\\<]/g;
const LEAST_HEIGHT = { text: 90, negative: 66 }; // pixels of the boxes with their margins, so that the line leaves them room
const MARGIN = 8; // pixels round the status
const WIDTH = 768; // of the conditioning, as Stable Diffusion 1.5 reads it
const LONGEST = 2048; // tokens of a training sequence
const STYLE = `
.kosmos-g-text { font: 12px/21px ui-monospace, monospace !important; letter-spacing: 0 !important; }
.kosmos-g-layer { position: absolute; overflow: hidden; pointer-events: none; color: transparent; z-index: 2;
  white-space: pre-wrap; overflow-wrap: break-word; box-sizing: border-box; border-color: transparent !important; }
.kosmos-g-layer .mark { padding: 2px 0; border-radius: 3px; background: #345 center/cover; outline: 1.5px solid var(--slot, #89a); }
.kosmos-g-layer .mark.named { color: #fff; }
.kosmos-g-layer .mark.raw { background: none !important; color: transparent; }
.kosmos-g-layer .wrong { border-radius: 3px; background: #c228 !important; outline: 1.5px solid #f55; }
.kosmos-g-layer .stronger { box-shadow: inset 0 -2px #f90; }
.kosmos-g-layer .weaker { box-shadow: inset 0 -2px #48f; }
.kosmos-g-layer .partner { background: #fff3; outline: 1px solid #fff8; }
.kosmos-g-status { font: 11px/15px sans-serif; color: var(--input-text, #ddd); overflow: hidden; cursor: default; }
.kosmos-g-status .images { display: flex; gap: 5px; flex-wrap: wrap; padding: 2px; }
.kosmos-g-status button { all: unset; cursor: pointer; display: flex; align-items: center; gap: 4px; height: 28px;
  padding-right: 4px; border-radius: 4px; outline: 1.5px solid var(--slot); background: #0004; max-width: 130px; }
.kosmos-g-status button.wrong { outline-color: #f55; background: #c224; }
.kosmos-g-status button span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.kosmos-g-status img, .kosmos-g-menu img { width: 28px; height: 28px; object-fit: cover; border-radius: 4px; }
.kosmos-g-status .line { padding: 2px; }
.kosmos-g-status.waiting .line { opacity: 0.6; }
.kosmos-g-status .error { color: #f77; padding: 0 2px; }
.kosmos-g-status .warning { color: #fb4; padding: 0 2px; }
.kosmos-g-menu { position: fixed; z-index: 10000; background: #222; color: #ddd; border: 1px solid #666;
  border-radius: 5px; font: 12px sans-serif; padding: 3px; }
.kosmos-g-menu div { display: flex; align-items: center; gap: 7px; padding: 2px 7px 2px 2px; border-radius: 4px;
  cursor: pointer; max-width: 320px; }
.kosmos-g-menu div.chosen { background: #358; }`;
const COLOURS = ["#5b9cf0", "#f0a04b", "#62c370", "#d773d0", "#e0d04a", "#4cc8c8", "#b08cf0", "#e88a8a"];

// ---- The graph ----------------------------------------------------------------------------------------------------

const linksOf = (graph) => [...(graph.links?.values?.() ?? Object.values(graph.links ?? {}))];
const widgetOf = (node, name) => node?.widgets?.find((widget) => widget.name === name);
const titled = (node) => node.title || node.type;
const indexOf = (node, name) => node.inputs?.findIndex((each) => each.name === name) ?? -1;
const hasType = (slot, type) => String(slot.type).split(",").some((part) => part === type || part === "*");

/** Numbers of the connected inputs that take one of the types. */
const connected = (node, ...types) => (node.inputs ?? []).flatMap((each, index) =>
  node.isInputConnected(index) && types.some((type) => hasType(each, type)) ? [index] : []);

/** The node and output that feed input number `index`, past reroutes and bypassed nodes; null where nothing does. */
function origin(node, index) {
  let link = index < 0 ? null : node.getInputLink(index);
  for (let steps = 0; link && steps < 50; steps++) {
    const source = node.graph.getNodeById(link.origin_id);
    if (!source) return { node: null, output: link.origin_slot }; // the edge of a subgraph
    if (source.mode === 2) return null;
    if (source.mode !== 4 && !source.isVirtualNode) return { node: source, output: link.origin_slot };
    if (source.isVirtualNode && !source.inputs?.length) return { node: null, output: 0 }; // another pack's wireless link
    const wanted = String(source.outputs?.[link.origin_slot]?.type);
    const through = connected(source, ...(source.isVirtualNode ? source.inputs.map((each) => String(each.type)) : [wanted]))[0];
    link = through === undefined ? null : source.getInputLink(through);
  }
  return null;
}

/** Every node upstream over inputs of one type that has no such input itself: where the type comes from. */
function sources(node, index, type, seen = new Set()) {
  const found = origin(node, index);
  if (!found?.node || seen.has(found.node)) return [];
  seen.add(found.node);
  const onward = connected(found.node, type);
  return onward.length ? onward.flatMap((each) => sources(found.node, each, type, seen)) : [found.node];
}

/** Inputs that an output of one type reaches, also through nodes that take and give that type. */
function reached(node, output, type, seen = new Set()) {
  const found = [];
  for (const link of linksOf(node.graph)) {
    if (String(link.origin_id) !== String(node.id) || link.origin_slot !== output) continue;
    const target = node.graph.getNodeById(link.target_id);
    if (!target || target.mode === 2 || seen.has(`${target.id} ${link.target_slot}`)) continue;
    seen.add(`${target.id} ${link.target_slot}`);
    found.push({ node: target, input: target.inputs?.[link.target_slot] });
    (target.outputs ?? []).forEach((each, index) => {
      if (hasType(each, type)) found.push(...reached(target, index, type, seen));
    });
  }
  return found;
}

const viewed = (file) => api.apiURL(`/view?filename=${encodeURIComponent(file.filename)}&type=${file.type ?? "input"}`
  + `&subfolder=${encodeURIComponent(file.subfolder ?? "")}`);

/** Address and name of the image that a node gives: its file, its last preview, or what it was made from. */
function shown(node, depth = 0) {
  if (!node) return { name: "from elsewhere" };
  const value = /^LoadImage/.test(node.type) ? widgetOf(node, "image")?.value : null;
  if (typeof value === "string" && value) {
    const [, path, type] = value.match(/^(.*?)(?: \[(\w+)\])?$/s);
    const cut = path.lastIndexOf("/");
    return {
      thumb: viewed({ filename: path.slice(cut + 1), subfolder: path.slice(0, Math.max(cut, 0)), type }),
      name: path.slice(cut + 1),
    };
  }
  const preview = node.imgs?.[0]?.src ?? (app.nodeOutputs?.[node.id]?.images?.[0] && viewed(app.nodeOutputs[node.id].images[0]));
  if (preview) return { thumb: preview, name: titled(node) };
  const above = connected(node, "IMAGE", "KOSMOSG_IMAGE")[0];
  const source = above !== undefined && depth < 20 ? origin(node, above) : null;
  if (!source?.node) return { name: titled(node) };
  const made = shown(source.node, depth + 1);
  return { ...made, name: `${titled(node)}: ${made.name}` };
}

/** The connected images by slot: {slot, thumb, name, noun}. */
function connectedImages(node) {
  const found = [];
  for (let slot = 1; slot <= SLOTS; slot++) {
    const source = origin(node, indexOf(node, `image_${slot}`));
    if (source) found.push({ slot, noun: String(widgetOf(source.node, "noun")?.value ?? ""), ...shown(source.node) });
  }
  return found;
}

/** What in the graph does not fit this node's conditionings, a sentence each; `width` is what the checkpoint reads. */
function misfits(node, width) {
  const found = new Set();
  for (const output of [0, 1, 2]) {
    for (const { node: target, input } of reached(node, output, "CONDITIONING")) {
      if (!["positive", "negative"].includes(input?.name)) continue;
      const name = input.name === "positive" ? "negative" : "positive";
      for (const encoder of sources(target, indexOf(target, name), "CONDITIONING")) {
        const clips = connected(encoder, "CLIP").flatMap((index) => sources(encoder, index, "CLIP"));
        if (clips.some((each) => /^(Checkpoint|.*CLIP)Loader/i.test(each.type))) {
          found.add(`The ${name} of ${titled(target)} comes from ${titled(encoder)} with another CLIP, which does not fit: `
            + `connect the ${name} of this node, or give ${titled(encoder)} the CLIP of Load Kosmos-G.`);
        }
      }
    }
  }
  if (width && width !== WIDTH) {
    const family = { 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL" }[width] ?? "another model";
    found.add(`${checkpointOf(node)} is ${family} (conditionings of width ${width}): Kosmos-G is for Stable Diffusion 1.5 `
      + `(width ${WIDTH}). Choose a checkpoint of it.`);
  }
  return [...found];
}

/** Name of the checkpoint whose model is sampled with this node's conditionings, "" where there is none. */
function checkpointOf(node) {
  for (const output of [0, 1, 2]) {
    for (const { node: target } of reached(node, output, "CONDITIONING")) {
      for (const source of connected(target, "MODEL").flatMap((index) => sources(target, index, "MODEL"))) {
        const name = widgetOf(source, "ckpt_name")?.value;
        if (typeof name === "string") return name;
      }
    }
  }
  return "";
}

function fileOf(node) {
  const loader = sources(node, indexOf(node, "clip"), "CLIP").find((each) => each.type === "KosmosGLoader");
  return String(widgetOf(loader, "file")?.value ?? "");
}

// ---- The text -----------------------------------------------------------------------------------------------------

/** Pieces {start, end, kind, slot, weight, why, wrong, partner} of a text; marks are added to `taken`. */
function pieces(text, images, taken) {
  const found = [];
  const open = [];
  const free = () => images.find((image) => !taken.has(image.slot));
  for (const match of text.matchAll(LEXEME)) {
    const word = match[0];
    const piece = { start: match.index, end: match.index + word.length, kind: "text", weights: [] };
    found.push(piece);
    if (word === "(") {
      piece.kind = "bracket";
      open.push({ piece, index: found.length - 1, colon: -1 });
    } else if (word === ":" && open.length) {
      open.at(-1).colon = found.length - 1;
    } else if (word === ")") {
      piece.kind = "bracket";
      const group = open.pop();
      if (!group) {
        Object.assign(piece, { wrong: true, why: "This ) closes nothing: open it with (, or write \\) for a plain one." });
        continue;
      }
      Object.assign(piece, { partner: group.piece });
      group.piece.partner = piece;
      if (group.colon < 0) continue;
      const spelled = text.slice(found[group.colon].end, piece.start).trim();
      const weight = /^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$/.test(spelled) ? Number(spelled) : NaN;
      for (const each of found.slice(group.index)) each.weights.push(weight);
      for (const each of found.slice(group.colon, -1)) {
        if (weight >= 0) Object.assign(each, { kind: "weight" });
        else Object.assign(each, { wrong: true, why: `'${spelled}' is no weight such as 1.3; write \\: where the colon is text.` });
      }
    } else if (word.length > 1 && word[0] === "<") {
      const digits = word.replace(/[^0-9]/g, "");
      const image = digits ? images.find((each) => each.slot === Number(digits)) : free();
      Object.assign(piece, { kind: "mark", image });
      if (image) {
        taken.add(image.slot);
        piece.why = `image_${image.slot}: ${image.name}`;
      } else {
        piece.wrong = true;
        piece.why = digits ? `Nothing is connected to image_${Number(digits)}: connect an image there, or drop one here.`
          : images.length ? "More marks than images: connect another image, or name one again as "
            + `<i${images[0].slot}>.` : "No image is connected: connect one to image_1, or drop one here.";
      }
    }
  }
  for (const { piece } of open) {
    Object.assign(piece, { wrong: true, why: "This ( is never closed: close it, or write \\( for a plain one." });
  }
  for (const piece of found) {
    piece.weight = piece.weights.reduce((product, weight) => product * weight, 1);
    if (piece.weights.length && piece.weight >= 0) piece.why = [piece.why, `weight ${+piece.weight.toFixed(4)}`].filter(Boolean).join(", ");
  }
  return found;
}

/** One text box: the layer above ComfyUI's own textarea, and the menu of marks. */
class TextField {
  constructor(box, name) {
    Object.assign(this, { box, name, touched: false, spans: [] });
    this.layer = document.createElement("div");
    this.layer.className = "kosmos-g-layer";
    this.measured = new ResizeObserver(() => this.place());
    this.events = null;
  }

  get widget() {
    return widgetOf(this.box.node, this.name);
  }

  get text() {
    return String(this.widget?.value ?? "");
  }

  /** Whether another node gives the text, so that the box does not hold it. */
  get linked() {
    const { node } = this.box;
    return node.inputs?.some((each, index) => each.widget?.name === this.name && node.isInputConnected(index)) ?? false;
  }

  /** Find the textarea that is on the page now: the widget's own, or the one that Nodes 2.0 makes for it. */
  find() {
    const own = this.widget?.element ?? this.widget?.inputEl;
    if (own instanceof HTMLTextAreaElement && own.isConnected) return own;
    const texts = (this.box.node.widgets ?? []).filter((each) => each.type === "customtext").map((each) => each.name);
    const areas = document.querySelectorAll(`[data-node-id="${CSS.escape(String(this.box.node.id))}"] textarea`);
    return areas.length === texts.length ? areas[texts.indexOf(this.name)] ?? null : null;
  }

  attach() {
    const area = this.find();
    if (area !== this.area) {
      this.detach();
      this.area = area;
      if (!area) return;
      area.classList.add("kosmos-g-text");
      this.events = new AbortController();
      const on = (kind, act, capture = false) => area.addEventListener(kind, act, { signal: this.events.signal, capture });
      on("input", (event) => this.typed(event));
      on("scroll", () => { this.layer.scrollTop = area.scrollTop; });
      on("focus", () => { this.touched = true; this.box.last = this; });
      on("blur", () => setTimeout(() => this.closeMenu(), 150));
      on("keydown", (event) => this.key(event), true);
      for (const kind of ["keyup", "pointerup", "select"]) on(kind, () => this.box.refresh());
      on("mousemove", (event) => { area.title = this.whyAt(event.clientX, event.clientY); });
      on("dragover", (event) => imagesIn(event.dataTransfer).length && (event.preventDefault(), event.stopPropagation()));
      on("drop", (event) => this.take(event, event.dataTransfer));
      on("paste", (event) => this.take(event, event.clipboardData));
      this.measured.observe(area);
    }
    if (area && this.layer.previousSibling !== area) {
      area.after(this.layer);
      this.place();
    }
  }

  detach() {
    this.events?.abort();
    this.measured.disconnect();
    this.area?.classList.remove("kosmos-g-text");
    this.layer.remove();
    this.closeMenu();
    this.area = null;
  }

  /** Lay the layer exactly over the text. */
  place() {
    const { area, layer } = this;
    if (!area) return;
    const style = getComputedStyle(area);
    for (const name of ["fontFamily", "fontSize", "fontWeight", "lineHeight", "letterSpacing", "wordSpacing", "textAlign",
      "tabSize", "paddingTop", "paddingBottom", "paddingLeft", "paddingRight", "borderTopWidth", "borderLeftWidth",
      "borderBottomWidth", "borderRightWidth", "borderStyle"]) layer.style[name] = style[name];
    const borders = parseFloat(style.borderLeftWidth) + parseFloat(style.borderRightWidth);
    Object.assign(layer.style, {
      left: `${area.offsetLeft}px`, top: `${area.offsetTop}px`, height: `${area.offsetHeight}px`,
      width: `${area.clientWidth + borders}px`, // without the scroll bar
    });
    layer.scrollTop = area.scrollTop;
  }

  draw(found) {
    const { area } = this;
    const caret = document.activeElement === area ? area.selectionStart : -1;
    this.spans = [];
    const drawn = found.map((piece) => {
      const span = document.createElement("span");
      span.textContent = this.text.slice(piece.start, piece.end);
      if (piece.kind === "mark") {
        span.classList.add("mark");
        if (piece.image) {
          span.style.setProperty("--slot", COLOURS[piece.image.slot - 1]);
          if (piece.image.thumb) span.style.backgroundImage = `url("${piece.image.thumb}")`;
        }
        if (piece.start < caret && caret < piece.end) span.classList.add("raw");
        else if (!piece.image?.thumb) span.classList.add(piece.wrong ? "raw" : "named");
      }
      const beside = [piece, piece.partner].some((each) => each && (each.start === caret || each.end === caret));
      span.classList.toggle("wrong", Boolean(piece.wrong));
      span.classList.toggle("partner", piece.kind === "bracket" && Boolean(piece.partner) && beside);
      span.classList.toggle("stronger", piece.weights.length > 0 && piece.weight > 1);
      span.classList.toggle("weaker", piece.weights.length > 0 && piece.weight < 1);
      if (piece.why) this.spans.push([span, piece.why]);
      return span;
    });
    this.layer.replaceChildren(...drawn, "\u200b"); // a last empty line has its height, too
    this.place();
  }

  whyAt(x, y) {
    const under = (box) => box.left <= x && x <= box.right && box.top - 3 <= y && y <= box.bottom + 3;
    return this.spans.find(([span]) => [...span.getClientRects()].some(under))?.[1] ?? "";
  }

  /** Type a mark into the box as the keyboard would, so that it can be undone. */
  insert(mark, from = null) {
    const area = this.area;
    const end = this.touched && area ? area.selectionEnd : this.text.length;
    const start = from ?? (this.touched && area ? area.selectionStart : end);
    const spaced = start > 0 && !/[\s(]/.test(this.text[start - 1]) ? ` ${mark}` : mark;
    if (area) {
      area.focus();
      area.setSelectionRange(start, end);
      if (document.activeElement === area && document.execCommand("insertText", false, spaced)) return;
    }
    if (this.widget) this.widget.value = this.text.slice(0, start) + spaced + this.text.slice(end);
  }

  take(event, data) {
    const files = imagesIn(data);
    if (!files.length) return;
    event.preventDefault();
    event.stopPropagation();
    this.box.last = this;
    this.box.add(files);
  }

  typed(event) {
    const caret = this.area.selectionStart;
    if (event.inputType === "insertText" && event.data === "<" && this.text[caret - 2] !== "\\") this.openMenu(caret - 1);
    else if (this.menu) this.fillMenu();
    this.box.refresh();
  }

  openMenu(start) {
    this.closeMenu();
    this.menu = document.createElement("div");
    this.menu.className = "kosmos-g-menu";
    Object.assign(this.menu, { start, choice: 0 });
    document.body.append(this.menu);
    this.box.refresh();
    this.fillMenu();
  }

  fillMenu() {
    const { area, menu } = this;
    const query = area.value.slice(menu.start, area.selectionStart);
    const asked = query.match(/^<(?:i|im|ima|imag|image)?_?([0-9]*)$/);
    if (!asked) return this.closeMenu();
    menu.offered = this.box.images.filter((image) => String(image.slot).startsWith(asked[1]));
    menu.choice = Math.min(menu.choice, Math.max(0, menu.offered.length - 1));
    const rows = menu.offered.map((image, number) => {
      const row = document.createElement("div");
      row.classList.toggle("chosen", number === menu.choice);
      if (image.thumb) row.append(Object.assign(new Image(), { src: image.thumb }));
      row.append(`<i${image.slot}>  ${image.name}`);
      row.addEventListener("pointerdown", (event) => { event.preventDefault(); this.choose(image); });
      return row;
    });
    menu.replaceChildren(...(rows.length ? rows : ["No image is connected: drop one on the node."]));
    this.layer.textContent = this.text + "\u200b";
    const range = document.createRange();
    range.setStart(this.layer.firstChild, Math.min(menu.start, this.text.length));
    range.setEnd(this.layer.firstChild, Math.min(menu.start + 1, this.text.length));
    const at = range.getBoundingClientRect();
    this.box.signature = "";
    Object.assign(menu.style, { left: `${at.left}px`, top: `${at.bottom + 4}px` });
    return undefined;
  }

  choose(image) {
    const { start } = this.menu;
    this.closeMenu();
    this.area.focus();
    this.area.setSelectionRange(start, this.area.selectionEnd);
    document.execCommand("insertText", false, `<i${image.slot}>`);
  }

  closeMenu() {
    this.menu?.remove();
    this.menu = null;
  }

  key(event) {
    if (!this.menu?.offered?.length) return event.key === "Escape" && this.closeMenu();
    const { offered, choice } = this.menu;
    if (event.key === "Escape") this.closeMenu();
    else if (event.key === "Enter" || event.key === "Tab") this.choose(offered[choice]);
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      this.menu.choice = (choice + (event.key === "ArrowDown" ? 1 : offered.length - 1)) % offered.length;
      this.fillMenu();
    } else return undefined;
    event.preventDefault();
    event.stopPropagation();
    return undefined;
  }
}

const imagesIn = (data) => [...(data?.files ?? [])].filter((file) => file.type.startsWith("image/"));

// ---- The node -----------------------------------------------------------------------------------------------------

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
    node.onDragOver = (event) => [...(event?.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
    node.onDragDrop = async (event) => {
      const files = imagesIn(event?.dataTransfer);
      if (files.length) await this.add(files);
      return files.length > 0;
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
    this.images = connectedImages(this.node);
    this.ask();
    const warnings = misfits(this.node, this.answer?.width);
    const carets = this.fields.map(({ area }) => document.activeElement === area && area?.selectionStart);
    const state = [this.fields.map((field) => [field.text, field.linked]), this.images, warnings, carets, this.answer, this.problem];
    const signature = JSON.stringify(state);
    if (signature === this.signature) return;
    this.signature = signature;
    const taken = new Set();
    const found = this.fields.map((field) => pieces(field.linked ? "" : field.text, this.images, taken));
    const unused = this.fields.some((field) => field.linked) ? [] : this.images.filter((image) => !taken.has(image.slot));
    this.fields.forEach((field, number) => field.area && field.draw(found[number]));
    this.show(unused, warnings);
  }

  show(unused, warnings) {
    const row = document.createElement("div");
    row.className = "images";
    for (const image of this.images) {
      const button = document.createElement("button");
      const wrong = unused.includes(image);
      button.style.setProperty("--slot", COLOURS[image.slot - 1]);
      button.classList.toggle("wrong", wrong);
      button.title = wrong ? `image_${image.slot} (${image.name}) has no mark: click to write <i${image.slot}>, or disconnect it.`
        : `image_${image.slot}: ${image.name}. Click to write <i${image.slot}> at the caret.`;
      if (image.thumb) button.append(Object.assign(new Image(), { src: image.thumb }));
      const label = document.createElement("span");
      label.textContent = ` <i${image.slot}>${wrong ? " no mark" : ""}`;
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
    const lines = [["line", [...counted, images].join(" · ")]];
    if (tokens > LONGEST) lines.push(["warning", "Longer than any sequence that the model was trained on: expect little of its end."]);
    if (this.problem) lines.push(["error", this.problem]);
    if (error && !this.fields.some((field) => field.linked)) lines.push(["error", error.reason]);
    if (remark) lines.push(["warning", remark]);
    lines.push(...warnings.map((warning) => ["warning", warning]));
    this.status.replaceChildren(...(this.images.length ? [row] : []), ...lines.map(([kind, text]) =>
      Object.assign(document.createElement("div"), { className: kind, textContent: text, title: text })));
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
    const [text, negative] = this.fields.map((field) => (field.linked ? "" : field.text));
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
    const covers = (other) => Math.abs(other.pos[0] - load.pos[0]) < 300
      && load.pos[1] < other.pos[1] + other.size[1] + 40 && other.pos[1] < load.pos[1] + 350;
    for (let tries = 0; tries < 30; tries++) {
      const other = graph._nodes.find(covers);
      if (!other) break;
      load.pos = [load.pos[0], other.pos[1] + other.size[1] + 50];
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
      for (const box of boxes) guarded(box, () => box.refresh());
    }, 250);
  },

  nodeCreated(node) {
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
    console.warn("Kosmos-G: the prompt box is off for this node, its text boxes work.", error);
  }
}
