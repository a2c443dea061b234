import { parentPort } from "node:worker_threads";
import { ChannelEnd } from "./channel-end.js";
import type { FromChannel, ToChannel } from "./channel-end.js";

const port = parentPort;
if (port === null) throw new Error("channel-thread.js runs as a worker");

// One channel after another: a thread is used again when its channel has ended.
let end: ChannelEnd | undefined;
port.on("message", (message: ToChannel) => {
  if (message.type === "send" || message.type === "receive") end = new ChannelEnd((reply) => port.postMessage(reply), undefined);
  end?.handle(message);
});
const up: FromChannel = { type: "up" };
port.postMessage(up);
