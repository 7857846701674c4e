// Uses the prompt box as a person does, in ComfyUI's own front end, and prints one JSON object of what was seen.
//
//   node prompt_box.mjs JOB.json     JOB: {playwright, chromium, address, images: [path, path], other, workflow, shots};
//                                 `other` is a checkpoint of another model
import fs from "node:fs";
import { answer, hurry, job, openPage, ready } from "../../dev/chromium.mjs";

const { browser, page } = await openPage(1400, 1000, 120000);
const asked = [];
await page.route("**/*", (route) => {
  const url = new URL(route.request().url());
  if (route.request().method() === "POST") asked.push(url.hostname === "127.0.0.1" ? url.pathname : url.href);
  return answer(route);
});
await hurry(page);
await page.goto(`http://${job.address}/`);
await ready(page);
await page.evaluate(() => app.extensionManager.setting.set("Comfy.VueNodes.Enabled", false));
await page.waitForTimeout(500);

if (job.shots) fs.mkdirSync(job.shots, { recursive: true });

// A graph with a mistake: the sampler's negative comes from the checkpoint's CLIP.
await page.evaluate(async () => {
  app.graph.clear();
  const add = (type, pos, values = {}) => {
    const node = LiteGraph.createNode(type);
    node.pos = pos;
    app.graph.add(node);
    for (const [name, value] of Object.entries(values)) node.widgets.find((widget) => widget.name === name).value = value;
    return node;
  };
  const checkpoint = add("CheckpointLoaderSimple", [0, 0], { ckpt_name: "tiny.safetensors" });
  const loader = add("KosmosGLoader", [0, 160], { file: "kosmos.safetensors" });
  const prompt = add("KosmosGTextEncode", [700, 0]);
  const negative = add("CLIPTextEncode", [700, 700]);
  const sampler = add("KSampler", [1250, 0]);
  checkpoint.connect(0, sampler, 0);
  checkpoint.connect(1, negative, 0);
  loader.connect(0, prompt, 0);
  prompt.connect(0, sampler, sampler.inputs.findIndex((input) => input.name === "positive"));
  negative.connect(0, sampler, sampler.inputs.findIndex((input) => input.name === "negative"));
  Object.assign(window, { prompt_: prompt, sampler_: sampler });
  app.canvas.ds.scale = 1.2;
  app.canvas.ds.offset = [-400, 90];
  app.canvas.setDirty(true, true);
});

const seen = {
  version: await page.evaluate(() => window.__COMFYUI_FRONTEND_VERSION__.split(".").map(Number)),
};
async function settle() {
  // By the page's own clock: on a busy machine the box has looked at the graph by then, too.
  await page.evaluate(() => new Promise((resolve) => setTimeout(resolve, 150)));
  await page.waitForFunction(() => !document.querySelector(".kosmos-g-status.waiting"));
}
async function look(name) {
  await settle();
  seen[name] = await page.evaluate(() => {
    const [text, negative] = [...document.querySelectorAll(".kosmos-g-layer")].map((layer) =>
      [...layer.querySelectorAll("span")].filter((span) => span.className).map((span) => ({
        text: span.textContent, kinds: span.className, image: span.style.backgroundImage,
      })));
    return {
      text, negative,
      values: prompt_.serialize().widgets_values,
      status: [...document.querySelectorAll(".kosmos-g-status > div")].map((line) => `${line.className}: ${line.textContent}`),
      unmarked: [...document.querySelectorAll(".kosmos-g-status button.wrong")].map((button) => button.title),
      menu: document.querySelector(".kosmos-g-menu")?.textContent ?? "",
      shown: prompt_.inputs.map((input) => input.name).filter((name) => name.startsWith("image_")),
      linked: prompt_.inputs.flatMap((input, index) => prompt_.isInputConnected(index) ? [input.name] : []),
      files: app.graph._nodes.filter((node) => node.type === "LoadImage").map((node) => node.widgets[0].value),
    };
  });
  if (job.shots) await page.screenshot({ path: `${job.shots}/${name}.png` });
}

/** Drag a file onto the page as a file manager does. */
async function drop(path, x, y) {
  const session = await page.context().newCDPSession(page);
  for (const type of ["dragEnter", "dragOver", "drop"]) {
    await session.send("Input.dispatchDragEvent", { type, x, y, data: { items: [], files: [path], dragOperationsMask: 1 } });
  }
}

/** Paste a file where nothing has the focus. */
const paste = (path) => page.evaluate(([name, content]) => {
  const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
  const clipboardData = new DataTransfer();
  clipboardData.items.add(new File([bytes], name, { type: "image/png" }));
  document.body.dispatchEvent(new ClipboardEvent("paste", { bubbles: true, cancelable: true, clipboardData }));
}, [path.split("/").pop(), fs.readFileSync(path).toString("base64")]);

const area = page.locator("textarea[data-kosmos-g]").first();
await area.waitFor();
await look("empty");
await area.click();
await page.keyboard.type("a cat <");
await look("menu without images");
await page.keyboard.type("i>");
await look("mark without image");
for (let times = 0; times < 3; times++) await page.keyboard.press("Backspace");
const box = await area.boundingBox();
await drop(job.images[0], box.x + 40, box.y + 20);
await look("dropped");
await page.keyboard.type(" and <");
await look("menu");
await page.keyboard.press("Enter");
await look("chosen");
await page.keyboard.press("Control+z");
await look("undone");
await page.keyboard.press("Control+y");
await page.keyboard.type(" eats ");
await page.evaluate(() => {
  document.activeElement.blur();
  app.canvas.selectNode?.(prompt_);
});
await paste(job.images[1]);
await look("pasted");
await page.keyboard.press("Control+a");
await page.keyboard.press("Control+c");
await page.locator("textarea[data-kosmos-g]").nth(1).click();
await page.keyboard.press("Control+v");
await look("copied");
await page.keyboard.press("Control+z");
await area.fill("a (cat <i1>:1.3) on (blue (paper)");
await look("wrong");
seen.why = await page.evaluate(async () => {
  const found = [];
  const area = document.querySelector("textarea[data-kosmos-g]");
  for (const span of document.querySelectorAll(".kosmos-g-layer span[class]")) {
    const box = span.getBoundingClientRect();
    area.dispatchEvent(new MouseEvent("mousemove", { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2 }));
    found.push([span.textContent, area.title]);
  }
  return found;
});
await page.evaluate(() => {
  const first = app.graph._nodes.find((node) => node.type === "LoadImage");
  first.connect(0, prompt_, prompt_.inputs.findIndex((input) => input.name === "image_3"));
});
await area.fill("((a cat <i>)) eats <i2> BREAK <i3>");
await look("habits");
await page.evaluate(() => prompt_.disconnectInput(prompt_.inputs.findIndex((input) => input.name === "image_3")));
await page.evaluate(() => prompt_.connect(1, sampler_, sampler_.inputs.findIndex((input) => input.name === "negative")));
await area.fill("a cat <i> eats <i>");
await look("right");
await page.evaluate(async () => {
  await app.loadGraphData(app.graph.serialize());
  const found = (type) => app.graph._nodes.find((node) => node.type === type);
  Object.assign(window, { prompt_: found("KosmosGTextEncode"), sampler_: found("KSampler") });
});
await look("reloaded");
seen.pasted_with_links = await page.evaluate(async () => {
  const source = LiteGraph.createNode("PrimitiveStringMultiline") ?? LiteGraph.createNode("PrimitiveString");
  app.graph.add(source);
  source.connect(0, prompt_, prompt_.inputs.findIndex((input) => input.widget?.name === "negative"));
  app.canvas.deselectAll?.();
  app.canvas.selectNode(prompt_);
  app.canvas.copyToClipboard();
  app.canvas.pasteFromClipboard({ connectInputs: true });
  await new Promise((resolve) => setTimeout(resolve, 300));
  const copy = app.graph._nodes.filter((node) => node.type === prompt_.type).at(-1);
  const names = [prompt_, copy].map((node) => node.inputs.flatMap((input, index) =>
    node.isInputConnected(index) ? [`${input.name} ${node.getInputNode(index).id}`] : []));
  app.graph.remove(copy);
  app.graph.remove(source);
  return [names, copy !== prompt_];
});
// From the free input to the empty canvas: what type does the search look for, which opens there?
const socket = await page.evaluate(async () => {
  await app.extensionManager.setting.set("Comfy.LinkRelease.Action", "no action");
  const connector = app.canvas.linkConnector;
  connector.events.addEventListener("dropped-on-canvas", () => { window.asked_ = connector.renderLinks[0].fromSlot.type; });
  const [x, y] = prompt_.getConnectionPos(true, prompt_.inputs.findIndex((input) => input.name === "image_3"));
  const { scale, offset } = app.canvas.ds;
  const corner = app.canvas.canvas.getBoundingClientRect();
  return [(x + offset[0]) * scale + corner.left, (y + offset[1]) * scale + corner.top];
});
await page.mouse.move(...socket);
await page.mouse.down();
await page.mouse.move(socket[0] - 60, socket[1] + 300, { steps: 4 });
await page.mouse.move(socket[0] - 90, 940, { steps: 4 });
await page.mouse.up();
await page.waitForFunction(() => window.asked_);
await page.waitForTimeout(100);
seen.dragged = await page.evaluate(() => {
  const colour = (type) => LGraphCanvas.link_type_colors[type];
  return {
    asked: window.asked_, type: prompt_.inputs.find((input) => input.name === "image_3").type,
    colours: [colour("IMAGE,KOSMOSG_IMAGE"), colour("IMAGE")],
    offered: LiteGraph.slot_types_default_in["IMAGE,KOSMOSG_IMAGE"] ?? [],
  };
});
seen.prompt = await page.evaluate(async () => (await app.graphToPrompt()).output[prompt_.id].inputs);
seen.colours = await page.evaluate(() => app.graph._nodes.map((node) => [node.type, node.bgcolor ?? null]));
await page.evaluate((name) => {
  app.graph._nodes.find((node) => node.type === "CheckpointLoaderSimple").widgets[0].value = name;
  const source = LiteGraph.createNode("PrimitiveString");
  app.graph.add(source);
  const texts = prompt_.inputs.findIndex((input) => input.widget?.name === "text");
  Object.assign(window, { source_: source, unlink_: () => prompt_.disconnectInput(texts) });
  source.connect(0, prompt_, texts);
}, job.other);
await look("what is elsewhere");
await page.evaluate(() => { unlink_(); app.graph.remove(source_); });
await page.evaluate(() => app.extensionManager.setting.set("Comfy.VueNodes.Enabled", true));
await page.waitForTimeout(1500);
await page.locator(`[data-node-id] textarea[data-kosmos-g]`).first().fill("Nodes 2.0: <i2> and <i> and <i4>");
await look("nodes 2.0");
seen.asked = [...new Set(asked)];
// What a node refuses, and what it fails with, is on the screen without another click.
for (const [name, file, text, words] of [
  ["refused", "gone.safetensors", "", "There is no Kosmos-G file 'gone.safetensors'. Searched: "],
  ["failed", "kosmos.safetensors", "a (cat", "or write \\( for a plain one. (at “(cat” after “a”, character 3)"],
]) {
  await page.evaluate(async ([file, text]) => {
    app.graph.clear();
    const [loader, prompt, shown] = ["KosmosGLoader", "KosmosGTextEncode", "PreviewAny"].map((type) => {
      const node = LiteGraph.createNode(type);
      app.graph.add(node);
      return node;
    });
    loader.connect(0, prompt, 0);
    prompt.connect(3, shown, 0);
    loader.widgets.find((widget) => widget.name === "file").value = file;
    prompt.widgets.find((widget) => widget.name === "text").value = text;
    await app.queuePrompt(0, 1);
  }, [file, text]);
  seen[name] = await page.waitForFunction((words) => document.body.innerText.includes(words), words)
    .then(() => true, () => false);
  if (job.shots) await page.screenshot({ path: `${job.shots}/${name}.png` });
}
await page.evaluate(async () => {
  await app.extensionManager.setting.set("Comfy.VueNodes.Enabled", false);
  await app.extensionManager.setting.set("Comfy.Locale", "zh");
});
await page.reload();
await ready(page);
seen.chinese = await page.evaluate(async (workflow) => {
  const find = (type) => app.graph._nodes.find((node) => node.type === type);
  do { // the front end may bring back the graph that was open before, a moment later
    await app.loadGraphData(workflow);
    await new Promise((resolve) => setTimeout(resolve, 700));
  } while (!find("MarkdownNote"));
  const batch = find("KosmosGTextEncode").widgets.find((widget) => widget.name === "batch");
  return {
    batch: [batch._displayValue, batch.value], note: find("MarkdownNote").widgets[0].value,
    group: app.graph._groups[0].title, title: find("MarkdownNote").title,
  };
}, job.workflow);
await page.locator("textarea[data-kosmos-g]").first().fill("a (cat BREAK ((dog)) <1>");
await settle();
const told = () => page.evaluate(() =>
  [...document.querySelectorAll(".kosmos-g-status > div")].map((line) => `${line.className}: ${line.textContent}`));
seen.chinese.error = await told();
await page.locator("textarea[data-kosmos-g]").first().fill("a cat BREAK ((dog)) <1>");
await settle();
seen.chinese.remarks = await told();
seen.chinese.placeholder = await page.locator("textarea[data-kosmos-g]").nth(1).getAttribute("placeholder");
if (job.shots) await page.screenshot({ path: `${job.shots}/chinese.png` });
await page.evaluate(() => app.extensionManager.setting.set("Comfy.Locale", "en"));
console.log(JSON.stringify(seen));
await browser.close();
