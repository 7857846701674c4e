// What the prompt box reads in the graph: the images of a Kosmos-G Prompt, its files, and what does not fit it.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

export const SLOTS = 8;
const WIDTH = 768; // of the conditioning, as Stable Diffusion 1.5 reads it

const linksOf = (graph) => [...(graph.links?.values?.() ?? Object.values(graph.links ?? {}))];
export const widgetOf = (node, name) => node?.widgets?.find((widget) => widget.name === name);
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

/** The connected images by slot: {slot, from, thumb, name, noun}; `from` is null where a subgraph hides it. */
export function connectedImages(node) {
  const found = [];
  for (let slot = 1; slot <= SLOTS; slot++) {
    const source = origin(node, indexOf(node, `image_${slot}`));
    if (!source) continue;
    const from = source.node ? `${source.node.id} ${source.output}` : null;
    found.push({ slot, from, noun: String(widgetOf(source.node, "noun")?.value ?? ""), ...shown(source.node) });
  }
  return found;
}

/** What in the graph does not fit this node's conditionings, a sentence each; `width` is what the checkpoint reads. */
export function misfits(node, width, images = []) {
  const found = new Set();
  const twin = images.flatMap((one) => images.filter((other) => one.from && one.from === other.from && one.slot < other.slot)
    .map((other) => [one, other]))[0];
  if (twin) {
    found.add(`image_${twin[0].slot} and image_${twin[1].slot} are the same output (${twin[0].name}): each run gets one `
      + "picture for both, of a list too. Connect another node for another picture.");
  }
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
export function checkpointOf(node) {
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

/** Name of the Kosmos-G file whose CLIP the node gets, "" where there is none. */
export function fileOf(node) {
  const loader = sources(node, indexOf(node, "clip"), "CLIP").find((each) => each.type === "KosmosGLoader");
  return String(widgetOf(loader, "file")?.value ?? "");
}
