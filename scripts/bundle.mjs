// Puts what tsc has built into few files, packages/cli/bundle, which is what `precopy` runs: resolving, reading and compiling a hundred modules
// in each thread was half of what an agent's start took (ADR 0023).
import { cpSync, readdirSync, rmSync } from "node:fs";
import { basename } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const built = (path) => fileURLToPath(new URL(`../packages/${path}`, import.meta.url));
const BUNDLE = built("cli/bundle");
const WORKLOADS = built("guest/dist/workloads");

rmSync(BUNDLE, { recursive: true, force: true });
const workloads = readdirSync(WORKLOADS).filter((name) => name.endsWith(".js") && !name.endsWith(".test.js"));
for (const entryPoints of [
  // Commands are loaded as they are asked for, and share most of what they need.
  { main: built("cli/dist/main.js") },
  { "memory-thread": built("guest/dist/memory-thread.js") },
  { "channel-thread": built("transport/dist/channel-thread.js") },
  // A workload throws the thread's own errors.
  {
    "vcpu-thread": built("guest/dist/vcpu-thread.js"),
    ...Object.fromEntries(workloads.map((name) => [`workloads/${basename(name, ".js")}`, `${WORKLOADS}/${name}`])),
  },
])
  await build({
    entryPoints,
    outdir: BUNDLE,
    bundle: true,
    splitting: true,
    platform: "node",
    format: "esm",
    target: "node20",
    logLevel: "warning",
    external: ["koffi", "lz4-napi", "pino"], // native code, and what may start a thread of its own
    // CommonJS packages ask for Node's modules by require().
    banner: { js: 'import { createRequire as requireOf } from "node:module"; const require = requireOf(import.meta.url);' },
  });
for (const kernels of ["page-kernels.wasm", "delta-kernels.wasm"]) cpSync(built(`guest/dist/${kernels}`), `${BUNDLE}/${kernels}`);
