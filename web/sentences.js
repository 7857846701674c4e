// What the pack says, in ComfyUI's language: sentences of this browser part and of the server, which come in English.
//
// The words are in locales/<language>/main.json, English to the language: "sentences", "around" for what stands before or
// behind whole sentences, and "parts" of them. {0}, {1} ... is what differs, {0#} a number. Of what differs, only parts
// are translated: the rest is a person's own words, titles and file names. What is not known stays English.
let known = null;
let remembered = new Map();

/** Take the words of a language; null for English. */
export function speak(words) {
  remembered = new Map();
  known = words?.sentences ? Object.fromEntries(["sentences", "around", "parts"].map((kind) =>
    [kind, Object.entries(words[kind] ?? {}).map(([english, other]) => ({ form: form(english), other }))])) : null;
}

function form(english) {
  const seen = [];
  const parts = english.split(/(\{\d#?\})/).map((part) => {
    const [, number, counted] = /^\{(\d)(#?)\}$/.exec(part) ?? [];
    if (number === undefined) return part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    if (seen.includes(number)) return `\\k<_${number}>`; // the same words again
    seen.push(number);
    return `(?<_${number}>${counted ? "[\\d., ]*" : ".*?"})`;
  });
  return new RegExp(`^${parts.join("")}$`, "s");
}

/** A sentence in ComfyUI's language. */
export function said(sentence) {
  if (!known || !sentence) return sentence;
  if (!remembered.has(sentence)) {
    if (remembered.size > 500) remembered.clear(); // somebody types
    remembered.set(sentence, whole(sentence));
  }
  return remembered.get(sentence);
}

function whole(sentence) {
  return put(sentence, known.around, whole) ?? put(sentence, known.sentences, part) ?? sentence;
}

function part(words) {
  return put(words, known.parts, (inner) => (inner === words ? inner : part(inner))) ?? words;
}

/** The first of some templates that fits, filled with what differs after `change`; null where none does. */
function put(sentence, templates, change) {
  for (const { form: shape, other } of templates) {
    const found = shape.exec(sentence);
    if (found) return other.replace(/\{(\d)\}/g, (_, number) => change(found.groups?.[`_${number}`] ?? ""));
  }
  return null;
}
