// One text box of the prompt box: the layer above ComfyUI's own textarea, and the menu of marks.
import { widgetOf } from "./prompt_graph.js";
import { COLOURS } from "./prompt_style.js";
import { said } from "./sentences.js";

const LONGEST_TEXT = 20000; // characters that the server counts

/** One text box: the layer above ComfyUI's own textarea, and the menu of marks. */
export class TextField {
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

  /** Why the text is not read here, "" where it is. */
  get unread() {
    const { node } = this.box;
    if (node.inputs?.some((each, index) => each.widget?.name === this.name && node.isInputConnected(index))) {
      return `${this.name} comes from another node: it is read when the graph runs`;
    }
    return this.text.length > LONGEST_TEXT ? `${this.name} has more than ${LONGEST_TEXT.toLocaleString("en")} characters: too long to be read here` : "";
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
      area.dataset.kosmosG = this.name; // Nodes 2.0 writes the class anew with every text
      this.events = new AbortController();
      const on = (kind, act, capture = false) => area.addEventListener(kind, act, { signal: this.events.signal, capture });
      on("input", (event) => this.typed(event));
      on("scroll", () => { this.layer.scrollTop = area.scrollTop; });
      on("focus", () => { this.touched = true; this.box.last = this; });
      on("blur", () => setTimeout(() => this.closeMenu(), 150));
      on("keydown", (event) => this.key(event), true);
      for (const kind of ["keyup", "pointerup", "select"]) on(kind, () => this.box.refresh());
      on("mousemove", (event) => { area.title = this.whyAt(event.clientX, event.clientY); });
      on("dragover", (event) => hasFiles(event.dataTransfer) && (event.preventDefault(), event.stopPropagation()));
      on("drop", (event) => this.take(event, event.dataTransfer));
      on("paste", (event) => this.take(event, event.clipboardData));
      this.measured.observe(area);
    }
    if (area && said(area.placeholder) !== area.placeholder) area.placeholder = said(area.placeholder);
    if (area && this.layer.previousSibling !== area) {
      area.after(this.layer);
      this.place();
    }
  }

  detach() {
    this.events?.abort();
    this.measured.disconnect();
    if (this.area) delete this.area.dataset.kosmosG;
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
      if (piece.why) this.spans.push([span, said(piece.why)]);
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
    menu.replaceChildren(...(rows.length ? rows : [said("No image is connected: drop one on the node.")]));
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
    if (event.isComposing) return undefined;
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

/** The images among what is dropped or pasted. */
export const imagesIn = (data) => [...(data?.files ?? [])].filter((file) => file.type.startsWith("image/"));

/** Whether files are dragged; which ones, a browser says only when they are dropped. */
export const hasFiles = (data) => [...(data?.items ?? [])].some((item) => item.kind === "file");
