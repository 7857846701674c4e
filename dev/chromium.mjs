// A page of a headless Chromium, for scripts that are given a job: node SCRIPT.mjs JOB.json, with the paths
// {playwright, chromium} in it.
import fs from "node:fs";
import { pathToFileURL } from "node:url";

export const job = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));

export async function openPage(width, height, timeout) {
  const { chromium } = await import(pathToFileURL(job.playwright));
  const browser = await chromium.launch({
    executablePath: job.chromium,
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync"],
  });
  const page = await browser.newPage({ viewport: { width, height } });
  page.setDefaultTimeout(timeout);
  return { browser, page };
}

/** Wait until the front end of a page knows the pack's nodes. */
export function ready(page) {
  return page.waitForFunction(() => window.app?.graph && window.LiteGraph?.registered_node_types?.KosmosGTextEncode
    && window.app.extensionManager);
}

/** The front end of the job's server, which asks nothing outside this machine for anything. */
export async function openComfyUI(width, height, timeout) {
  const opened = await openPage(width, height, timeout);
  await opened.page.route("**/*", (route) =>
    new URL(route.request().url()).hostname === "127.0.0.1" ? route.continue() : route.abort());
  await opened.page.goto(`http://${job.address}/`);
  await ready(opened.page);
  return opened;
}
