import { mkdirSync, mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { readResults, renderTable, runCampaign, summaryLine } from "./campaign.js";
import { deriveCase, derivePostcopyCase, everyPoint, parseFault } from "./fault-case.js";
import type { FaultCase } from "./fault-case.js";
import { seedOf } from "./random.js";

// npm run test:faults -- --count N --seed S [--jobs J] [--json FILE | --resume FILE] [--logs FOLDER]
//   --only SEED               one case again
//   --fault WHERE=ACTION ...  these faults in place of those of the seeds: target.owner=kill, control.up.message#3=rst, link=down:2000@50
//   --postcopy                cases of post-copy and hybrid
//   --every-point             each fault point, killed and held, in place of cases from seeds
const { values } = parseArgs({
  options: {
    count: { type: "string", default: "100" },
    seed: { type: "string", default: "1" },
    jobs: { type: "string", default: "6" },
    only: { type: "string" },
    fault: { type: "string", multiple: true },
    postcopy: { type: "boolean", default: false },
    "every-point": { type: "boolean", default: false },
    json: { type: "string" },
    resume: { type: "string" },
    logs: { type: "string" },
  },
});
const forced = values.fault?.map(parseFault);
const resultsFile = values.resume ?? values.json;
const earlier = values.resume === undefined ? [] : readResults(values.resume);

function chosen(): readonly FaultCase[] {
  if (values["every-point"]) return everyPoint().filter(({ seed }) => values.only === undefined || seed === Number(values.only));
  const derive = values.postcopy ? derivePostcopyCase : deriveCase;
  if (values.only !== undefined) return [derive(Number(values.only), forced)];
  const campaign = Number(values.seed);
  return Array.from({ length: Number(values.count) }, (_, at) => derive(seedOf(campaign, at), forced));
}

const logFolder = values.logs ?? mkdtempSync(join(tmpdir(), "precopy-fault-logs-"));
mkdirSync(logFolder, { recursive: true });
const cases = chosen();
const results = await runCampaign(
  cases.filter(({ seed }) => !earlier.some((one) => one.seed === seed)),
  {
    jobs: Number(values.jobs),
    resultsFile,
    logFolder,
    replay: ({ seed }) => {
      const others = values["every-point"] ? ["--every-point"] : (values.fault ?? []).map((text) => `--fault "${text}"`);
      return ["npm run test:faults --", ...(values.postcopy ? ["--postcopy"] : []), "--only", seed, ...others].join(" ");
    },
    say: (line) => console.log(line),
  },
);
const all = [...earlier, ...results];
if (cases.length === 1) console.log(JSON.stringify(all.at(-1), null, 2));
console.log(renderTable(all));
console.log(summaryLine(all));
process.exitCode = all.some(({ wrong, lost, doubled }) => wrong.length + lost + doubled > 0) ? 1 : 0;
