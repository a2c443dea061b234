import { once } from "node:events";
import { Bitmap, GuestMemory, SegmentPool } from "@precopy/guest";
import { MigrationError, PAGE_BYTES } from "@precopy/protocol";
import type { Address } from "@precopy/protocol";
import { AgentPort, ChannelThreads, LaneTable, PageReceiver } from "@precopy/transport";
import type { ChannelName } from "@precopy/transport";
import { cpuSeconds } from "./cpu-seconds.js";

// Forked by channel-sender.ts: stores images that come over page channels. One order at a time, one answer an order.

/** `prepare` gives the channels of `session` fresh memory to store in; `begin` is sent when they are open, and answered twice: `begun`, `stored`. */
export type ToReceiver =
  | { readonly type: "prepare"; readonly session: string; readonly bytes: number; readonly channels: number }
  | { readonly type: "begin" }
  | { readonly type: "release" };
export type FromReceiver =
  | { readonly type: "listening"; readonly address: Address }
  | { readonly type: "prepared" | "begun" | "released" }
  /** The round is over on every channel. Bytes: populated by it. */
  | { readonly type: "stored"; readonly bytes: number; readonly cpuSeconds: number };

const tell = (message: FromReceiver): void => void process.send?.(message);

const pool = new SegmentPool();
const threads = new ChannelThreads();
let current: { readonly session: string; readonly receiver: PageReceiver; readonly populated: Bitmap } | undefined;

async function prepare({ session, bytes, channels }: ToReceiver & { type: "prepare" }): Promise<void> {
  await threads.prepare(channels);
  const memory = GuestMemory.allocate(bytes, pool);
  const populated = new Bitmap(memory.pages);
  const receiver = new PageReceiver({
    lanes: LaneTable.allocate(channels),
    threads,
    pump: "direct",
    memory: memory.share(),
    hashes: undefined,
    populated: populated.words,
  });
  receiver.onLost = (_, error) => {
    throw error;
  };
  current = { session, receiver, populated };
  tell({ type: "prepared" });
}

function begin(): void {
  const { receiver, populated } = current ?? {};
  if (receiver === undefined || populated === undefined) return;
  const before = cpuSeconds();
  receiver.onDelivered = () => {
    if (!receiver.hasDelivered(1)) return;
    const spent = cpuSeconds() - before;
    tell({ type: "stored", bytes: populated.count() * PAGE_BYTES, cpuSeconds: spent });
  };
  tell({ type: "begun" });
}

async function release(): Promise<void> {
  await current?.receiver.end();
  current = undefined;
  tell({ type: "released" });
}

const port = await AgentPort.listen(
  { host: "127.0.0.1", port: 0 },
  {
    onControl: (control) => control.close(new MigrationError("ERR_BAD_MESSAGE", "Only page channels come here")),
    onFaultChannel: () => false,
    onPageChannel: (name: ChannelName, socket) => name.session === current?.session && current.receiver.accept(name, socket),
  },
  "bench",
);
process.on("message", (message: ToReceiver) => {
  if (message.type === "prepare") void prepare(message);
  else if (message.type === "begin") begin();
  else void release();
});
tell({ type: "listening", address: port.address });
await once(process, "disconnect");
await current?.receiver.end();
await Promise.all([port.close(), threads.end()]);
