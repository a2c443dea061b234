import assert from "node:assert/strict";
import { it } from "node:test";
import { Worker } from "node:worker_threads";
import { once } from "node:events";

const MODULE = new URL("./young-garbage.js", import.meta.url).href;
const CODEC = import.meta.resolve("@precopy/protocol/page-codec");

/** What a thread that compresses 384 MiB keeps of memory outside its heap, MiB: at most, or at its end if something is done there. */
async function kept(between: string, atEnd: string): Promise<number> {
  const code = `
    (async () => {
      const { dropped, collectDropped } = await import(${JSON.stringify(MODULE)});
      const { encodeBlock, lz4Napi } = await import(${JSON.stringify(CODEC)});
      const { randomFillSync } = require("node:crypto");
      const turn = () => new Promise((resolve) => setImmediate(resolve));
      const raw = Buffer.alloc(65536);
      const block = Buffer.alloc(4 + 65536);
      const before = process.memoryUsage().external;
      let peak = 0;
      for (let at = 0; at < 6144; at++) {
        randomFillSync(raw, 0, 32768);
        const bytes = encodeBlock(raw, block, 0, lz4Napi());
        ${between}
        if (at % 16 === 0) await turn();
        peak = Math.max(peak, process.memoryUsage().external - before);
      }
      ${atEnd}
      await turn(); await turn();
      require("node:worker_threads").parentPort.postMessage([peak, process.memoryUsage().external - before].map((bytes) => bytes / 2 ** 20));
    })()`;
  const worker = new Worker(code, { eval: true, resourceLimits: { maxYoungGenerationSizeMb: 4 } });
  const [[peak, rest]] = (await once(worker, "message")) as [[number, number]];
  await worker.terminate();
  return atEnd === "" ? peak : rest;
}

it("a thread that says what it dropped keeps less than 20 MiB of it, and little at the end; one that does not keeps much more", async () => {
  const silent = await kept("", "");
  const told = await kept("dropped(bytes);", "");
  const ended = await kept("dropped(bytes);", "collectDropped();");
  assert.ok(told < 20, `${told} MiB`);
  assert.ok(ended < 4, `${ended} MiB at the end`);
  assert.ok(silent > 28, `${silent} MiB without a word`);
});

it("many threads that begin at once all collect, and none fails", async () => {
  const code = `import(${JSON.stringify(MODULE)}).then(({ dropped }) => require("node:worker_threads").parentPort.postMessage(dropped(2 ** 30)));`;
  const workers = Array.from({ length: 24 }, () => new Worker(code, { eval: true }));
  const answers = await Promise.all(workers.map((worker) => once(worker, "message"))); // an error rejects
  assert.deepEqual(answers.flat(), new Array(24).fill(true));
});
