// Compiles packages/guest/assembly into the kernels beside packages/guest/dist: those that are older than what they are made of.
import { mkdirSync, statSync } from "node:fs";
import { fileURLToPath } from "node:url";

const inGuest = (path) => fileURLToPath(new URL(`../packages/guest/${path}`, import.meta.url));
const CONFIG = inGuest("assembly/asconfig.json");
/** The compiler's release is pinned in package.json. */
const MADE_BY = [CONFIG, fileURLToPath(import.meta.url), fileURLToPath(new URL("../package.json", import.meta.url))];
const madeAt = (path) => statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? Number.NEGATIVE_INFINITY;

const kernels = ["page", "delta"].map((target) => ({
  target,
  source: inGuest(`assembly/${target}-kernels.ts`),
  made: inGuest(`dist/${target}-kernels.wasm`),
}));
const old = kernels.filter(({ source, made }) => [source, ...MADE_BY].some((path) => madeAt(path) > madeAt(made)));
if (old.length > 0) {
  mkdirSync(inGuest("dist"), { recursive: true });
  const { default: asc } = await import("assemblyscript/asc"); // takes seconds to load
  for (const { target, source } of old) {
    const { error } = await asc.main([source, "--config", CONFIG, "--target", target], { stderr: process.stderr });
    if (error !== null) process.exitCode = 1;
  }
}
