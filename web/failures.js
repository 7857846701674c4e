// What a node of the pack refuses or fails with, said at once: newer front ends keep the sentence behind a button and an
// icon, and say only that a value was rejected.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { said } from "./sentences.js";

const SHOWN = 30000; // milliseconds
const DIALOG = 700; // after which a front end that shows the sentence itself has opened its dialog

let messages = []; // that are on the screen

const isOurs = (type) => String(type).startsWith("KosmosG");

function tell(type, sentence) {
  if (!isOurs(type) || !sentence) return;
  const title = window.LiteGraph?.registered_node_types?.[type]?.title ?? type;
  setTimeout(() => {
    const start = sentence.slice(0, 60);
    if ([...document.querySelectorAll("[role=dialog]")].some((dialog) => dialog.innerText.includes(start))) return;
    const message = { severity: "error", summary: title, detail: said(sentence), life: SHOWN };
    if (messages.some(({ detail }) => detail === message.detail)) return; // a whole queue fails alike
    messages.push(message);
    app.extensionManager?.toast?.add(message);
  }, DIALOG);
}

/** The sentences of refused values; a server puts the name of the input before each, "file - ...". */
function tellRefusals(answer) {
  for (const { class_type: type, errors } of Object.values(answer?.node_errors ?? {})) {
    for (const { type: kind, details } of errors ?? []) {
      if (kind === "custom_validation_failed") tell(type, String(details).replace(/^\w+ - /, ""));
    }
  }
}

/** Remove the messages on the screen, whose reason may be gone. */
export function takeBack() {
  messages.forEach((message) => app.extensionManager?.toast?.remove?.(message));
  messages = [];
}

app.registerExtension({
  name: "KosmosG.Failures",

  setup() {
    api.addEventListener("execution_error", ({ detail }) => tell(detail?.node_type, String(detail?.exception_message ?? "").trim()));
    const queue = api.queuePrompt;
    api.queuePrompt = async function queuePrompt(...all) {
      takeBack();
      try {
        return await queue.apply(this, all);
      } catch (error) {
        tellRefusals(error?.response);
        throw error;
      }
    };
  },
});
