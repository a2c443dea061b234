// One target for a while, in a process of its own: what breaks native code ends the process, and leaves the input behind.
import { closeSync, mkdirSync, openSync, readFileSync, readdirSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { fuzz, nameOf } from "./fuzzer.js";
import { makeTarget } from "./targets.js";

/** What its parent reads from its standard output. */
export interface FuzzReport {
  readonly target: string;
  readonly executions: number;
  readonly covered: number;
  readonly ofCharacters: number;
  readonly corpus: number;
  readonly findings: readonly { readonly file: string; readonly what: string }[];
}

const [name = "", corpusFolder = "", findingsFolder = "", forMs = "0", seed = "1", isKept = ""] = process.argv.slice(2);

const target = makeTarget(name);
if (target === undefined) throw new Error(`${name} cannot be fuzzed here`);
mkdirSync(findingsFolder, { recursive: true });
const last = openSync(join(findingsFolder, `${name}.last`), "w");
const read = (folder: string): Buffer[] => {
  try {
    return readdirSync(folder).map((file) => readFileSync(join(folder, file)));
  } catch {
    return []; // none yet
  }
};
const bytes = Buffer.alloc(4);
const { executions, covered, ofCharacters, corpus, findings } = await fuzz(
  target,
  read(join(corpusFolder, name)),
  Number(forMs),
  Number(seed),
  (input) => {
    bytes.writeUInt32LE(input.byteLength);
    writeSync(last, bytes, 0, 4, 0);
    writeSync(last, input, 0, input.byteLength, 4);
  },
);
closeSync(last);
if (isKept === "keep") {
  mkdirSync(join(corpusFolder, name), { recursive: true });
  for (const input of corpus) writeFileSync(join(corpusFolder, name, nameOf(input)), input);
}
const found = findings.map(({ input, what }) => {
  const file = join(findingsFolder, `${name}-${nameOf(input)}`);
  writeFileSync(file, input);
  return { file, what };
});
const report: FuzzReport = { target: name, executions, covered, ofCharacters, corpus: corpus.length, findings: found };
process.stdout.write(`${JSON.stringify(report)}\n`, () => process.exit(0));
