// A newcomer in front of an empty ComfyUI: searches a node, meets a loader without a file, opens a workflow, presses once.
//
//   node first_minutes.mjs JOB.json     JOB: {playwright, chromium, address, pack}
//
// Prints {added, found, button, told, clicks, drawn, stale, chosen, view}.
import { job, openComfyUI } from "../../dev/chromium.mjs";

const { browser, page } = await openComfyUI(1600, 900, 300000);
const seen = { found: {} };

const typing = () => document.activeElement?.tagName === "INPUT";
const within = (milliseconds, condition) =>
  page.waitForFunction(condition, null, { timeout: milliseconds }).then(() => true, () => false);

async function search(words) {
  for (let tries = 0; tries < 30 && !(await page.evaluate(typing)); tries++) { // before, letters are ComfyUI's keys
    await page.keyboard.press("Escape");
    await page.mouse.dblclick(800, 600);
    await within(1000, typing);
  }
  await page.mouse.move(5, 450); // what lies under it would be the one that is chosen
  await page.keyboard.type(words, { delay: 20 });
  await page.waitForTimeout(1500);
}

await page.evaluate(() => app.graph.clear());
for (const words of ["image prompt", "subject", "reference"]) {
  await search(words);
  seen.found[words] = await within(60000, () => document.body.innerText.includes("Kosmos-G Prompt"));
  await page.keyboard.press("Escape");
  await page.keyboard.press("Escape");
  await page.evaluate(() => document.activeElement?.blur());
  await within(5000, () => !document.body.innerText.includes("Kosmos-G Prompt")); // the list is gone
}
await page.evaluate(() => app.refreshComboInNodes()); // as the key R does
await search("kosmos");
await page.waitForFunction(() => document.body.innerText.includes("Kosmos-G "));
await page.keyboard.press("Enter");
await page.waitForFunction(() => app.graph._nodes.length);
seen.added = await page.evaluate(() => app.graph._nodes.map((node) => [node.type, node.title, node.bgcolor]));

seen.button = await page.evaluate(() => {
  const node = LiteGraph.createNode("KosmosGLoader");
  return node.widgets.map((widget) => [widget.name, widget.value ?? null, widget.serialize !== false]);
});
await page.evaluate(() => app.graph.clear());

await page.evaluate(async (pack) => {
  window.ended = new Promise((resolve) => ["execution_success", "execution_error"].forEach((kind) =>
    app.api.addEventListener(kind, () => resolve(kind), { once: true })));
  const response = await app.api.fetchApi(`/workflow_templates/${pack}/two_subjects.json`);
  await app.loadGraphData(await response.json(), true, true, "two_subjects", { openSource: "template" });
}, job.pack);
await page.waitForSelector("dialog.kosmos-g-samples");
// Refused, and said so by the pack itself: a front end with a dialog for it is not asked.
await page.evaluate(async () => { app.api.queuePrompt(0, await app.graphToPrompt()).catch(() => 0); });
const refusal = page.locator(".p-toast-message").filter({ hasText: "There is no Kosmos-G file" });
await refusal.waitFor({ state: "attached" });
await page.evaluate(() => { // between copying and drawing, which takes messages back as well
  const refresh = app.refreshComboInNodes;
  const shown = () => [...document.querySelectorAll(".p-toast-message")].filter((one) => one.innerText.includes("There is no Kosmos-G file")).length;
  app.refreshComboInNodes = async function (...all) {
    for (let tries = 0; tries < 50 && shown(); tries++) await new Promise((resolve) => setTimeout(resolve, 100));
    window.stale ??= shown();
    return refresh.apply(this, all);
  };
});
seen.told = await page.locator("dialog.kosmos-g-samples").innerText();
await page.getByText("Copy and draw", { exact: true }).click();
seen.clicks = 1;
seen.drawn = await page.evaluate(() => window.ended);
seen.stale = await page.evaluate(() => window.stale);
seen.chosen = await page.evaluate(() => app.graph._nodes.filter((node) => node.type === "KosmosGLoader")
  .flatMap((node) => node.widgets.map((widget) => widget.name + "=" + widget.value)));
await page.waitForFunction(() => app.graph._nodes.filter((node) => node.type === "LoadImage")
  .every((node) => node.imgs?.length && node.imgs.every((image) => image.naturalWidth)));
seen.view = await page.evaluate(() => app.canvas.ds.scale);
console.log(JSON.stringify(seen));
await browser.close();
