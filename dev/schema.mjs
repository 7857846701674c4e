// Validates workflows with the schema that ComfyUI's front end itself uses, taken from the source map it is shipped with.
//
//   node schema.mjs JOB.json     JOB: {modules, assets, folder, workflows: {name: UI JSON}}
//
// Prints one JSON object: {name: null, or what is wrong}.
import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const job = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const esbuild = createRequire(path.join(job.modules, "x.js"))("esbuild");

function schemaSource() {
  for (const name of fs.readdirSync(job.assets).filter((name) => name.endsWith(".js.map"))) {
    const map = JSON.parse(fs.readFileSync(path.join(job.assets, name), "utf8"));
    const index = map.sources.findIndex((source) => source.endsWith("workflowSchema.ts"));
    if (index >= 0) return map.sourcesContent[index];
  }
  throw new Error(`no source map in ${job.assets} holds workflowSchema.ts`);
}

const bundle = path.join(job.folder, "schema-bundle.mjs");
await esbuild.build({
  stdin: { contents: schemaSource(), loader: "ts", resolveDir: path.dirname(job.modules) },
  bundle: true, format: "esm", platform: "node", outfile: bundle, nodePaths: [job.modules], logLevel: "error",
});
const { validateComfyWorkflow } = await import(pathToFileURL(bundle));
const results = {};
for (const [name, workflow] of Object.entries(job.workflows)) {
  let complaint = null;
  const accepted = await validateComfyWorkflow(workflow, (message) => { complaint = message; });
  results[name] = accepted ? null : complaint ?? "refused";
}
console.log(JSON.stringify(results));
