import { once } from "node:events";
import { createConnection, createServer } from "node:net";
import type { Server, Socket } from "node:net";
import { HEADER_BYTES, MigrationError, PacketDecoder, PacketKind, RUN_BYTES } from "@precopy/protocol";
import type { Address } from "@precopy/protocol";

/** After how many bytes of packets, a whole number, and how: with `end` the source hears of it when the target has read them all, with `reset` at once. */
export interface Cut {
  readonly afterBytes: number;
  readonly how: "end" | "reset";
}

/** One run of a packet that went through whole. */
export interface PassedRun {
  readonly channel: number;
  readonly generation: number;
  readonly round: number;
  readonly first: number;
  readonly pages: number;
}

/** Stands between the two ends of page channels, reads along, and cuts connections where it is told to. */
export class CuttingProxy {
  readonly address: Address;
  readonly passed: PassedRun[] = [];
  /** Connections that were cut. */
  cuts = 0;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(server: Server, address: Address) {
    this.#server = server;
    this.address = address;
  }

  /** @param cutOf asked for each connection; undefined lets it live. */
  static async listen(to: Address, cutOf: (channel: number, generation: number) => Cut | undefined): Promise<CuttingProxy> {
    const server = createServer({ pauseOnConnect: true });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const at = server.address();
    if (at === null || typeof at === "string") throw new MigrationError("ERR_INTERNAL", "The proxy has no address");
    const proxy = new CuttingProxy(server, { host: "127.0.0.1", port: at.port });
    server.on("connection", (near: Socket) => proxy.#join(near, createConnection({ host: to.host, port: to.port }), cutOf));
    return proxy;
  }

  #join(near: Socket, far: Socket, cutOf: (channel: number, generation: number) => Cut | undefined): void {
    for (const [one, other] of [
      [near, far],
      [far, near],
    ] as const) {
      this.#sockets.add(one);
      one.setNoDelay(true).on("error", () => {}); // being cut off is what this is about
      one.on("close", () => {
        this.#sockets.delete(one);
        other.destroy();
      });
    }
    far.pipe(near);
    let asked = "";
    near.on("data", (chunk: Buffer) => {
      asked += chunk.toString("latin1");
      if (!asked.endsWith("\r\n\r\n")) return; // a source of ours sends nothing more before the answer
      near.removeAllListeners("data");
      const [channel = -1, generation = -1] = /channel=(\d+)&generation=(\d+)/.exec(asked)?.slice(1).map(Number) ?? [];
      far.write(asked, "latin1");
      this.#pump(near, far, channel, generation, cutOf(channel, generation));
    });
    near.resume();
  }

  #pump(near: Socket, far: Socket, channel: number, generation: number, cut: Cut | undefined): void {
    const decoder = this.#reader(channel, generation);
    let left = cut?.afterBytes ?? Number.POSITIVE_INFINITY;
    const finish = (): void => {
      this.cuts++;
      near.removeAllListeners("data").pause();
      if (cut?.how === "end")
        far.end(); // the target closes its side when it has read to the end, and that closes ours
      else for (const socket of [near, far]) socket.resetAndDestroy();
    };
    near.on("data", (chunk: Buffer) => {
      const bytes = chunk.subarray(0, Math.min(chunk.byteLength, left));
      left -= bytes.byteLength;
      decoder.push(bytes);
      if (!far.write(bytes) && left > 0) {
        near.pause();
        far.once("drain", () => near.resume());
      }
      if (left === 0) finish();
    });
  }

  #reader(channel: number, generation: number): PacketDecoder {
    let runs: PassedRun[] = [];
    return new PacketDecoder(
      { pages: 2 ** 32, mayCarry: () => true },
      {
        begin: ({ kind, round, dataRuns, zeroRuns }, head) => {
          runs =
            kind === PacketKind.Flush
              ? []
              : Array.from({ length: dataRuns + zeroRuns }, (_, run) => {
                  const at = HEADER_BYTES + run * RUN_BYTES;
                  return { channel, generation, round, first: head.readUInt32LE(at), pages: head.readUInt32LE(at + 4) };
                });
        },
        payload: () => {},
        end: () => void this.passed.push(...runs),
      },
    );
  }

  async close(): Promise<void> {
    this.#server.close();
    await Promise.all(
      [...this.#sockets].map(async (socket) => {
        const closed = once(socket, "close");
        socket.destroy();
        await closed;
      }),
    );
  }
}
