import { parentPort } from "node:worker_threads";
import { ChannelEnd } from "./channel-end.js";
import type { FromChannel, ToChannel } from "./channel-end.js";
import { FaultEnd } from "./fault-end.js";
import type { ToFaultEnd } from "./fault-end.js";
import { TlsEnd } from "./tls-end.js";
import type { SecuredConnection, ToTlsEnd } from "./tls-end.js";

const port = parentPort;
if (port === null) throw new Error("channel-thread.js runs as a worker");

const reply = (message: object): void => port.postMessage(message);

// One channel after another: a thread is used again when its channel has ended.
let end: ChannelEnd | undefined;
/** Where TLS is, what comes before the channel. */
let tls: TlsEnd | undefined;
const secured = (): SecuredConnection | undefined => {
  const connection = tls?.take();
  tls = undefined;
  return connection;
};
port.on("message", (message: ToChannel | ToTlsEnd | Extract<ToFaultEnd, { type: "serve-faults" | "handle-faults" }>) => {
  switch (message.type) {
    case "tls-accept":
    case "tls-connect":
      tls = new TlsEnd(reply);
      return tls.handle(message);
    case "tls-answer":
    case "tls-relay":
    case "tls-close":
      return tls?.handle(message);
    case "serve-faults":
    case "handle-faults":
      return new FaultEnd(reply, secured()?.keep()).handle(message);
    case "send":
    case "receive":
      end = new ChannelEnd(reply, secured());
      return end.handle(message);
    default:
      end?.handle(message);
  }
});
const up: FromChannel = { type: "up" };
port.postMessage(up);
