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

// Every source of the front end that the maps carry, by its path under src/.
const sources = new Map();
for (const name of fs.readdirSync(job.assets).filter((name) => name.endsWith(".js.map"))) {
  const map = JSON.parse(fs.readFileSync(path.join(job.assets, name), "utf8"));
  map.sources.forEach((source, index) => {
    const inside = source.split("/src/");
    if (inside.length > 1 && map.sourcesContent?.[index]) sources.set(inside.slice(1).join("/src/"), map.sourcesContent[index]);
  });
}
const schema = [...sources.keys()].find((source) => source.endsWith("workflowSchema.ts"));
if (!schema) throw new Error(`no source map in ${job.assets} holds workflowSchema.ts`);

// The newest schemas are written for zod 4, which zod 3 carries beside itself; its errors say what is wrong themselves.
const forZod4 = sources.get(schema).includes("z.guid(");
const alias = forZod4 ? { zod: "zod/v4" } : {};

// Newer schemas import from the rest of the front end: from "@/..." and from beside themselves.
const frontEnd = {
  name: "front-end",
  setup(build) {
    const find = (inside) => [inside, `${inside}.ts`, `${inside}/index.ts`].find((source) => sources.has(source));
    build.onResolve({ filter: /^(@\/|\.)/ }, ({ path: wanted, importer, namespace }) => {
      if (namespace === "file" && importer !== "<stdin>") return undefined; // a package's own
      const inside = wanted.startsWith("@/") ? wanted.slice(2) : path.posix.join(path.posix.dirname(importer), wanted);
      const found = find(inside);
      return found ? { path: found, namespace: "front-end" } : { errors: [{ text: `no source map holds ${inside}` }] };
    });
    if (forZod4) build.onResolve({ filter: /^zod-validation-error$/ }, () => ({ path: "errors", namespace: "words" }));
    build.onLoad({ filter: /.*/, namespace: "words" }, () => ({ contents: "export const fromZodError = (error) => error" }));
    build.onLoad({ filter: /.*/, namespace: "front-end" }, ({ path: source }) => (
      { contents: sources.get(source), loader: "ts", resolveDir: path.dirname(job.modules) }));
  },
};

const bundle = path.join(job.folder, "schema-bundle.mjs");
await esbuild.build({
  stdin: { contents: sources.get(schema), loader: "ts", resolveDir: path.dirname(job.modules) },
  plugins: [frontEnd], alias,
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
