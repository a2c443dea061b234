import assert from "node:assert/strict";
import { once } from "node:events";
import { Socket } from "node:net";
import { describe, it } from "node:test";
import { GuestMemory, SegmentPool } from "@precopy/guest";
import { SocketHandle, isLinuxAvailable } from "@precopy/linux";
import { ChannelEnd } from "./channel-end.js";
import type { FromChannel } from "./channel-end.js";
import { LaneTable } from "./lane-table.js";

const skip = isLinuxAvailable ? false : "no system calls here";

describe("ChannelEnd", { skip }, () => {
  const setupOf = (fd: number) => {
    const memory = GuestMemory.allocate(2 ** 20, new SegmentPool());
    memory.view(0, memory.pages).fill(1);
    const lanes = LaneTable.allocate(1).share();
    const stop = new Int32Array(new SharedArrayBuffer(4)).fill(1); // one that goes on does not wait for ever
    return {
      channel: 0,
      generation: 1,
      lanes,
      pump: "direct",
      fd,
      isSecured: true,
      memory: memory.share(),
      hashes: undefined,
      stop,
    } as const;
  };
  const send = { type: "send", compression: "none", sentPages: new Float64Array(new SharedArrayBuffer(8)) } as const;
  const receive = {
    type: "receive",
    answer: Buffer.from("HTTP/1.1 101 Switching Protocols\r\n\r\n"),
    populated: new Uint32Array(8),
  } as const;

  for (const order of [send, receive])
    it(`without the keys of a connection that is to be secured it ends, and nothing is said in clear (${order.type})`, async () => {
      const { near, far } = SocketHandle.pair();
      const peer = new Socket({ fd: far, readable: true, writable: true });
      let heard = 0;
      peer.on("data", (bytes) => (heard += bytes.byteLength));
      const ended = new Promise<FromChannel>((resolve) => {
        const end = new ChannelEnd(resolve, undefined);
        end.handle({ ...order, ...setupOf(near.fd) });
        end.handle({ type: "round", round: 1, words: new Uint32Array(8).fill(2 ** 32 - 1), pacing: 0, from: [{ lane: 0, page: 0 }] });
      });
      const { type, code } = (await ended) as FromChannel & { type: "ended" };
      assert.deepEqual({ type, code }, { type: "ended", code: "ERR_LINK_LOST" });
      near.shutdown();
      near.close();
      await once(peer, "close");
      assert.equal(heard, 0);
    });
});
