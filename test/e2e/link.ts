import { once } from "node:events";
import { connect, createServer } from "node:net";
import type { AddressInfo, Server, Socket } from "node:net";

/** A TCP link between two agents that can fall silent: connections stay open, no FIN is sent, and nothing passes. */
export class Link {
  readonly #server: Server;
  readonly #pairs = new Set<readonly [Socket, Socket]>();
  #isSilent = false;

  private constructor(server: Server) {
    this.#server = server;
  }

  static async to(address: string): Promise<Link> {
    const port = Number(address.split(":").at(-1));
    const link = new Link(createServer({ pauseOnConnect: true }, (near) => link.#accept(near, port)));
    link.#server.listen(0, "127.0.0.1");
    await once(link.#server, "listening");
    return link;
  }

  get address(): string {
    return `127.0.0.1:${(this.#server.address() as AddressInfo).port}`; // it listens on TCP
  }

  #accept(near: Socket, port: number): void {
    const far = connect({ port, host: "127.0.0.1", noDelay: true });
    const pair = [near, far] as const;
    this.#pairs.add(pair);
    near.setNoDelay(true);
    for (const [one, other] of [pair, [far, near] as const]) {
      one.on("data", (chunk: Buffer) => {
        if (!other.write(chunk)) one.pause();
      });
      other.on("drain", () => {
        if (!this.#isSilent) one.resume();
      });
      // While silent the end of one side stays its own affair, as if a cable were out.
      one.on("close", () => {
        if (!this.#isSilent) other.destroy();
      });
      one.on("error", () => one.destroy());
    }
    if (!this.#isSilent) near.resume();
    else far.pause();
  }

  /** From now on nothing passes, in either direction, and nobody is told. */
  fallSilent(): void {
    this.#isSilent = true;
    for (const pair of this.#pairs) for (const socket of pair) socket.pause();
  }

  /** The link is back: what stood in its buffers arrives. */
  comeBack(): void {
    this.#isSilent = false;
    for (const pair of this.#pairs) {
      const isBroken = pair.some((socket) => socket.destroyed);
      for (const socket of pair)
        if (isBroken) socket.destroy();
        else socket.resume();
    }
  }

  close(): void {
    for (const pair of this.#pairs) for (const socket of pair) socket.destroy();
    this.#server.close();
  }
}
