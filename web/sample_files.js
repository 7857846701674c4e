// "Kosmos-G: get sample files": small weights and example images, copied from the pack to where ComfyUI looks for them.
//
// A menu command, a button on a Load Kosmos-G that finds no file, and an offer when a workflow is opened that uses them.
// It always asks first; the server copies (POST /kosmos_g/samples) and changes nothing that exists.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { takeBack } from "./failures.js";
import { said } from "./sentences.js";

const LOADER = "KosmosGLoader";
const BUTTON = "Get sample files …";
const FIRST = "two_subjects"; // the workflow that is drawn where no other one is open
const PACK = new URL(import.meta.url).pathname.split("/extensions/")[1]?.split("/")[0] ?? "kosmos-g";
const STYLE = `
.kosmos-g-samples { max-width: 620px; padding: 20px 24px; border-radius: 10px; border: 1px solid #4a7;
  color: #eee; background: #262b2b; font: 14px/1.45 sans-serif; }
.kosmos-g-samples::backdrop { background: #0009; }
.kosmos-g-samples h3 { margin: 0 0 10px; font-size: 17px; }
.kosmos-g-samples ul { margin: 8px 0; padding-left: 20px; overflow-wrap: anywhere; }
.kosmos-g-samples .why { color: #fa8; }
.kosmos-g-samples menu { display: flex; gap: 10px; justify-content: flex-end; margin: 16px 0 0; padding: 0; }
.kosmos-g-samples button { padding: 7px 14px; border: 1px solid #577; border-radius: 6px; color: #eee; background: #355;
  font: inherit; cursor: pointer; }
.kosmos-g-samples button.first { background: #286; border-color: #4a8; font-weight: bold; }
`;

const widgetOf = (node, name) => node?.widgets?.find((widget) => widget.name === name);
const choices = (node, name) => {
  const values = widgetOf(node, name)?.options?.values;
  return (typeof values === "function" ? values() : values) ?? [];
};
const make = (tag, options = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), options);
  element.append(...children);
  return element;
};
/** Every node of the graph and of the subgraphs in it. */
const allNodes = (graph = app.graph) => graph._nodes.flatMap((node) => [node, ...(node.subgraph ? allNodes(node.subgraph) : [])]);
const fileSize = (bytes) => (bytes < 5e4 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

async function ask(method = "GET") {
  const response = await api.fetchApi("/kosmos_g/samples", { method });
  if (!response.ok) throw new Error(`the server answered ${response.status} ${response.statusText}`);
  return response.json();
}

/** A dialog; resolves with the name of the button that was pressed, "" where it was closed. */
function dialog(title, body, buttons) {
  return new Promise((resolve) => {
    const menu = make("menu");
    const box = make("dialog", { className: "kosmos-g-samples" }, make("h3", { textContent: said(title) }), ...body, menu);
    buttons.forEach((name, number) => {
      const button = make("button", { textContent: said(name), className: number ? "" : "first" });
      button.addEventListener("click", () => box.close(name));
      menu.append(button);
    });
    // ComfyUI's own keys must not reach the graph behind it.
    box.addEventListener("keydown", (event) => event.stopPropagation());
    box.addEventListener("close", () => {
      box.remove();
      resolve(box.returnValue);
    });
    document.body.append(box);
    box.showModal();
  });
}

const text = (words, className = "") => make("div", { textContent: said(words), className });
const list = (lines) => make("ul", {}, ...lines.map((line) => make("li", { textContent: said(line) })));
const tell = (title, ...body) => dialog(title, body, ["OK"]);

/** One line for each folder: what goes there. */
function folders(files) {
  const found = Map.groupBy ? Map.groupBy(files, (file) => file.folder) : files.reduce((all, file) =>
    all.set(file.folder, [...(all.get(file.folder) ?? []), file]), new Map());
  return [...found].map(([folder, some]) =>
    `${folder}: ${some.length > 2 ? `${some.length} files, kosmos-g-*` : some.map((file) => file.name).join(", ")} (${fileSize(some.reduce((sum, file) => sum + file.bytes, 0))})`);
}

/** Ask, copy, and draw if that was asked for. `reason` is why it is asked now. */
async function offer(reason = "") {
  if (document.querySelector(".kosmos-g-samples")) return;
  try {
    const { files, remark } = await ask();
    const [missing, taken] = ["missing", "taken"].map((state) => files.filter((file) => file.state === state));
    if (remark) {
      await tell("Kosmos-G sample files", text(remark));
      return;
    }
    const left = taken.map((file) => `${file.folder}/${file.name} is another file, which stays as it is.`);
    const about = text("Small weights that know 34 kinds of emoji (64 x 64 pixels), and example images. With them every workflow of Kosmos-G in the template browser runs as it is.");
    const what = missing.length ? [
      ...(reason ? [text(reason)] : []), about,
      text(`These ${missing.length} files, ${fileSize(missing.reduce((sum, file) => sum + file.bytes, 0))}, would be copied from the pack's own folder; nothing is downloaded and no existing file is changed:`),
      list(folders(missing)),
    ] : [text("All sample files are in their places."), about];
    if (left.length) what.push(list(left));
    const [draw, copy] = missing.length ? ["Copy and draw", "Copy only"] : ["Draw", null];
    const answer = await dialog("Kosmos-G: get sample files", what, [draw, ...(copy ? [copy] : []), "Not now"]);
    if (![draw, copy].includes(answer) || !answer) return;
    if (missing.length) {
      const done = await ask("POST");
      if (done.remark || done.left.length) await tell("Not everything was copied", list([...done.left, done.remark].filter(Boolean)));
    }
    takeBack(); // what was missing is there
    await refresh();
    if (answer === draw) await drawFirst();
  } catch (error) {
    await tell("Kosmos-G sample files", text(`Nothing was copied, or not all of it: ${error.message}.`, "why"));
  }
}

/** Let the nodes of the graph see the new files: what looked for them in vain is made anew with the graph. */
async function refresh() {
  await app.refreshComboInNodes();
  const nodes = allNodes();
  const { kosmos } = await ask();
  for (const node of nodes.filter((each) => each.type === LOADER)) {
    const [widget, button] = ["file", BUTTON].map((name) => widgetOf(node, name));
    if (button) {
      node.widgets.splice(node.widgets.indexOf(button), 1);
      node.setSize([node.size[0], node.computeSize()[1]]);
    }
    if (widget && !choices(node, "file").includes(widget.value) && choices(node, "file").includes(kosmos)) widget.value = kosmos;
  }
  if (!nodes.some((node) => /^(KosmosG|LoadImage)/.test(node.type))) return;
  const open = app.extensionManager?.workflow?.activeWorkflow ?? null;
  await app.loadGraphData(app.graph.serialize(), true, true, open);
}

/** Draw the open workflow if it has a Kosmos-G Prompt, else the first one of the pack. */
async function drawFirst() {
  if (!allNodes().some((node) => node.type === "KosmosGTextEncode")) {
    const response = await api.fetchApi(`/workflow_templates/${PACK}/${FIRST}.json`);
    await app.loadGraphData(await response.json(), true, true, FIRST);
  }
  await app.queuePrompt(0, 1);
}

app.registerExtension({
  name: "KosmosG.SampleFiles",
  commands: [{ id: "KosmosG.SampleFiles", label: "Kosmos-G: get sample files", icon: "pi pi-images", function: () => offer() }],
  menuCommands: [{ path: ["Kosmos-G"], commands: ["KosmosG.SampleFiles"] }],

  setup() {
    document.head.append(make("style", { textContent: STYLE }));
  },

  nodeCreated(node) {
    if (node.comfyClass !== LOADER || choices(node, "file").some((name) => name.endsWith(".safetensors"))) return;
    const button = node.addWidget("button", BUTTON, null, () => offer());
    button.serialize = false;
    button.label = said(BUTTON);
    button.options = { ...button.options, serialize: false };
    node.setSize?.([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  },

  /** A workflow that wants a sample file which is not there: offer it. */
  async afterConfigureGraph() {
    const wanted = allNodes().filter((node) => node.type === LOADER).map((node) => [node, widgetOf(node, "file")?.value]);
    const lacking = wanted.filter(([node, name]) => name && !choices(node, "file").includes(name));
    if (!lacking.length) return;
    try {
      const { kosmos, files } = await ask();
      if (!lacking.some(([, name]) => name === kosmos) || !files.some((file) => file.state === "missing")) return;
    } catch {
      return; // Load Kosmos-G itself says what it lacks
    }
    offer("This workflow uses the sample files of Kosmos-G, which are not there yet.");
  },
});
