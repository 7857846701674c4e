// A page of a headless Chromium, for scripts that are given a job: node SCRIPT.mjs JOB.json, with the paths
// {playwright, chromium} in it, and the folder `frontEnd` where it is to be another one than the server's.
import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

export const job = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));

export async function openPage(width, height, timeout) {
  const { chromium } = await import(pathToFileURL(job.playwright));
  const browser = await chromium.launch({
    executablePath: job.chromium,
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync",
      // A page whose own file was answered here comes from no address: it may talk to the server all the same.
      "--disable-features=LocalNetworkAccessChecks"],
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

/** Let the pack's own clocks run faster in a page: they look at the graph every 250 ms and ask 200 ms after a change. */
export function hurry(page) {
  return page.addInitScript(() => {
    const [every, after] = [window.setInterval, window.setTimeout];
    window.setInterval = (act, time, ...rest) => every(act, time === 250 ? 50 : time, ...rest);
    window.setTimeout = (act, time, ...rest) => after(act, time === 200 ? 40 : time, ...rest);
  });
}

/** Answer what a page asks: nothing comes from outside this machine, and the front end from the job's folder. */
export function answer(route) {
  const url = new URL(route.request().url());
  if (url.hostname !== "127.0.0.1") return route.abort();
  if (!job.frontEnd || route.request().method() !== "GET") return route.continue();
  const file = path.join(job.frontEnd, url.pathname === "/" ? "index.html" : decodeURIComponent(url.pathname));
  return file.startsWith(job.frontEnd) && fs.statSync(file, { throwIfNoEntry: false })?.isFile()
    ? route.fulfill({ path: file }) : route.continue();
}

/** The front end of the job's server, which asks nothing outside this machine for anything. */
export async function openComfyUI(width, height, timeout) {
  const opened = await openPage(width, height, timeout);
  await opened.page.route("**/*", answer);
  await hurry(opened.page);
  await opened.page.goto(`http://${job.address}/`);
  await ready(opened.page);
  return opened;
}
