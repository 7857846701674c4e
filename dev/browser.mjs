// Opens workflows in ComfyUI's own front end: load, save again, queue, wait for the end, take a picture of the graph.
//
//   node browser.mjs JOB.json     JOB: {playwright, chromium, address, shots, results, opened, workflows: {name: UI JSON}}
//
// Pictures are drawn small and in two steps; the workflows named in `results` as they are, and their shots show them;
// those named in `opened` are not drawn.
// Prints one JSON object: {name: {saved, prompt, events, refused, missing}}.
import { job, openComfyUI } from "./chromium.mjs";

// A machine that does other things as well is slow, not wrong: it has five minutes.
const { browser, page } = await openComfyUI(1920, 1080, 300000);
// A picture of the graph alone: no menus, no announcements.
await page.addStyleTag({ content: `body * { visibility: hidden !important }
  #graph-canvas, .dom-widget, .dom-widget * { visibility: visible !important }` });

async function open(workflow) {
  return page.evaluate(async (workflow) => {
    await app.loadGraphData(workflow);
    await new Promise((resolve) => setTimeout(resolve, 100)); // the pack has looked at the graph, as `hurry` has it
    const { output } = await app.graphToPrompt();
    return {
      saved: app.graph.serialize(),
      prompt: output,
      missing: app.graph._nodes.filter((node) => !LiteGraph.registered_node_types[node.type]).map((node) => node.type),
    };
  }, workflow);
}

async function run(asItIs) {
  return page.evaluate(async (asItIs) => {
    for (const node of asItIs ? [] : app.graph._nodes) {
      for (const widget of node.widgets ?? []) {
        if (node.type === "EmptyLatentImage" && ["width", "height"].includes(widget.name)) widget.value = 64;
        if (node.type === "SolidMask" && ["width", "height"].includes(widget.name)) widget.value = 64;
        if (widget.name === "steps") widget.value = 2;
      }
    }
    const events = [];
    const ended = new Promise((resolve) => {
      for (const kind of ["execution_success", "execution_error", "execution_interrupted"]) {
        app.api.addEventListener(kind, (event) => {
          events.push([kind, event.detail?.exception_message ?? ""]);
          resolve();
        }, { once: true });
      }
    });
    await app.queuePrompt(0, 1);
    const refused = app.lastNodeErrors && Object.keys(app.lastNodeErrors).length ? app.lastNodeErrors : null;
    if (!refused) await Promise.race([ended, new Promise((resolve) => setTimeout(resolve, 300000))]);
    return { events, refused };
  }, asItIs);
}

async function shoot(path, shown) {
  const clip = await page.evaluate(async () => {
    const nodes = app.graph._nodes;
    const left = Math.min(...nodes.map((node) => node.pos[0])) - 30;
    const top = Math.min(...nodes.map((node) => node.pos[1])) - 60;
    const right = Math.max(...nodes.map((node) => node.pos[0] + node.size[0])) + 30;
    const bottom = Math.max(...nodes.map((node) => node.pos[1] + node.size[1])) + 30;
    const view = app.canvas.ds;
    view.scale = Math.min(innerWidth / (right - left), innerHeight / (bottom - top));
    view.offset = [(innerWidth / view.scale - (right - left)) / 2 - left, (innerHeight / view.scale - (bottom - top)) / 2 - top];
    app.canvas.deselectAll?.();
    app.canvas.show_info = false;
    app.canvas.min_font_size_for_lod = 0; // text stays text however small
    app.canvas.low_quality_zoom_threshold = 0;
    app.canvas.setDirty(true, true);
    await new Promise((resolve) => setTimeout(resolve, 800));
    const [width, height] = [(right - left) * view.scale, (bottom - top) * view.scale];
    return { x: (innerWidth - width) / 2, y: (innerHeight - height) / 2, width, height };
  });
  // Nodes load the pictures they show on their own time.
  await page.waitForFunction((saved) => app.graph._nodes.filter((node) => ["LoadImage", ...saved].includes(node.type))
    .every((node) => node.imgs?.length && node.imgs.every((picture) => picture.complete && picture.naturalWidth)),
  shown ? ["SaveImage"] : []);
  await page.evaluate(() => new Promise((resolve) => {
    app.canvas.setDirty(true, true);
    setTimeout(resolve, 300);
  }));
  await page.screenshot({ path, clip });
}

const results = {};
for (const [name, workflow] of Object.entries(job.workflows)) {
  const opened = await open(workflow);
  const shown = job.results.includes(name);
  if (job.opened.includes(name)) {
    results[name] = opened;
    continue;
  }
  const ran = await run(shown);
  results[name] = { ...opened, ...ran };
  if (job.shots) {
    const succeeded = ran.events.some(([kind]) => kind === "execution_success");
    if (!shown || !succeeded) await open(workflow);
    await shoot(`${job.shots}/${name}.png`, shown && succeeded);
  }
}
console.log(JSON.stringify(results));
await browser.close();
