import { parentPort } from "node:worker_threads";
import { ChannelEnd } from "./channel-end.js";
import type { FromChannel, ToChannel } from "./channel-end.js";
import { FaultEnd } from "./fault-end.js";
import type { ToFaultEnd } from "./fault-end.js";

const port = parentPort;
if (port === null) throw new Error("channel-thread.js runs as a worker");

// One channel after another: a thread is used again when its channel has ended.
let end: ChannelEnd | undefined;
port.on("message", (message: ToChannel | Extract<ToFaultEnd, { type: "serve-faults" | "handle-faults" }>) => {
  if (message.type === "serve-faults" || message.type === "handle-faults")
    return new FaultEnd((reply) => port.postMessage(reply), undefined).handle(message);
  if (message.type === "send" || message.type === "receive") end = new ChannelEnd((reply) => port.postMessage(reply), undefined);
  end?.handle(message);
});
const up: FromChannel = { type: "up" };
port.postMessage(up);
