import { readFileSync } from "node:fs";

// npm puts package.json into every package and demands a version in it
const packageFile = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")) as { readonly version: string };
export const RELEASE = packageFile.version;
