import { fork } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { Bitmap, GuestMemory, SegmentPool } from "@precopy/guest";
import { PAGE_BYTES } from "@precopy/protocol";
import { ChannelThreads, LaneTable, PageChannel, connectPageChannel } from "@precopy/transport";
import type { FromReceiver, ToReceiver } from "./channel-receiver.js";
import { cpuSeconds } from "./cpu-seconds.js";
import { fillImage } from "./fill-image.js";
import type { ImageOrder, ImageRun } from "./peers/page-walk.js";

// Run by channel-throughput.ts: `channel-sender.js BYTES FILLED CHANNELS` fills an image and sends it over page channels to a process of its
// own. Says `ready` when they are open, begins at a line of its input, prints an ImageRun, and ends.
const [bytes = 0, filled = 0, channels = 1] = process.argv.slice(2).map(Number);

/** As an agent does before it listens: its channel threads have carried small images before the first real one comes (docs/adr/0008). */
const REHEARSALS = 3;
const REHEARSAL: ImageOrder = { bytes: 32 * 2 ** 20, filled: 16 * 2 ** 20, channels };

const pool = new SegmentPool();
const threads = new ChannelThreads();
await threads.prepare(channels);

const target = fork(new URL("channel-receiver.js", import.meta.url), [], { stdio: ["ignore", "ignore", "inherit", "ipc"] });
let isEnding = false;
target.once("exit", (code, signal) => {
  if (!isEnding) throw new Error(`The receiver ended: ${String(code ?? signal)}`);
});
/** Its next message. Call it before what causes that message. */
async function answer<T extends FromReceiver["type"]>(type: T): Promise<FromReceiver & { type: T }> {
  const [message] = (await once(target, "message")) as [FromReceiver]; // the only kind it sends
  if (message.type !== type) throw new Error(`The receiver said ${message.type} instead of ${type}`);
  return message as FromReceiver & { type: T }; // compared in the line above
}
async function ask<T extends FromReceiver["type"]>(message: ToReceiver, type: T): Promise<FromReceiver & { type: T }> {
  const answered = answer(type);
  target.send(message);
  return answered;
}
const { address } = await answer("listening");

/** Carries one image in one round. @param beforeStart awaited when everything is open, before the clock starts. */
async function carry(order: ImageOrder, beforeStart: () => Promise<void>): Promise<ImageRun> {
  const memory = GuestMemory.allocate(order.bytes, pool);
  fillImage(memory, order.filled, "random");
  const pages = new Bitmap(memory.pages);
  pages.setRun(0, order.filled / PAGE_BYTES);
  const session = randomUUID();
  await ask({ type: "prepare", session, bytes: order.bytes, channels }, "prepared");
  const lanes = LaneTable.allocate(channels).share();
  const senders: PageChannel[] = [];
  for (let channel = 0; channel < channels; channel++) {
    const { socket } = await connectPageChannel(address, { session, channel, generation: 1 }, new AbortController().signal);
    const common = { channel, generation: 1, lanes, memory: memory.share(), hashes: undefined } as const;
    senders.push(await PageChannel.open(socket, threads, { type: "send", pump: "direct", compression: "none", ...common }));
  }
  await beforeStart();
  await ask({ type: "begin" }, "begun");
  const stored = answer("stored");
  const cpuBefore = cpuSeconds();
  const started = performance.now();
  await Promise.all(senders.map((sender, lane) => sender.sendRound(1, pages.words, 0, [{ lane, page: 0 }])));
  const { bytes: storedBytes, cpuSeconds: cpuTarget } = await stored;
  const ms = performance.now() - started;
  const cpuSource = cpuSeconds() - cpuBefore;
  await ask({ type: "release" }, "released"); // first: to the receiver a sender that ends is one that broke
  await Promise.all(senders.map((sender) => sender.end()));
  if (storedBytes !== order.filled) throw new Error(`${storedBytes} B stored of ${order.filled}`);
  return { ms, bytes: storedBytes, cpuSource, cpuTarget };
}

for (let done = 0; done < REHEARSALS; done++) await carry(REHEARSAL, () => Promise.resolve());
const input = createInterface({ input: process.stdin });
const run = await carry({ bytes, filled, channels }, async () => {
  console.log(JSON.stringify({ type: "ready" }));
  await once(input, "line");
});
console.log(JSON.stringify({ type: "carried", ...run }));
input.close();
isEnding = true;
const gone = once(target, "exit");
target.disconnect();
await Promise.all([gone, threads.end()]); // whoever waits for this process waits for both: a run finds the machine as the one before it did
