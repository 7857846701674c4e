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
