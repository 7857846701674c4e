// In ComfyUI's language, what the front end itself leaves English: the values of choices, the notes and titles of this
// pack's workflows, and the pack's own sentences (sentences.js). The words are those of locales/<language>/main.json. What is sent and saved are the English values.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { speak } from "./sentences.js";

let words = null; // of the language, null for English

const setting = (name) => app.extensionManager?.setting?.get?.(name) ?? app.ui?.settings?.getSettingValue?.(name);

/** Show the values of a node's choices in the language. */
function label(node) {
  for (const widget of node.widgets ?? []) {
    const known = words.options[widget.name];
    if (widget.type !== "combo" || !known || !widget.options) continue;
    widget.options.getOptionLabel = (value) => known[value] ?? value ?? "";
  }
}

/** A workflow of this pack is known by the heading of its note: show note, titles and groups in the language. */
function translate(graph) {
  const nodes = graph?._nodes ?? [];
  for (const note of nodes.filter((node) => node.type === "MarkdownNote")) {
    const english = String(note.widgets?.[0]?.value ?? "");
    const known = words.notes[/^## (.*)/.exec(english)?.[1].trim()];
    if (!known) continue;
    const [, files = ""] = english.split(/(?=^### Files$)/m); // what all notes have in common, line by line
    const common = files.split("\n").map((line) => words.lines[line] ?? line).join("\n");
    note.widgets[0].value = `## ${known.join("\n")}\n\n${common}`.trimEnd();
    for (const each of [...nodes, ...(graph._groups ?? [])]) each.title = titled(each.title);
  }
}

/** A title in the language, "2 Images" as "2 图像"; one that is not known stays. */
function titled(title) {
  const [, number, text] = /^(\d+ )?(.*)$/s.exec(String(title ?? ""));
  return words.titles[text] ? `${number ?? ""}${words.titles[text]}` : title;
}

app.registerExtension({
  name: "KosmosG.Words",

  async setup() {
    const language = setting("Comfy.Locale");
    if (!language || language === "en") return;
    try {
      words = (await (await api.fetchApi("/i18n")).json())[language]?.kosmosG ?? null;
    } catch { /* English is left */ }
    speak(words);
    if (words) (app.graph?._nodes ?? []).forEach((node) => node.comfyClass?.startsWith("KosmosG") && label(node));
  },

  nodeCreated(node) {
    if (words && node.comfyClass?.startsWith("KosmosG")) label(node);
  },

  afterConfigureGraph() {
    if (words) translate(app.graph);
  },
});
