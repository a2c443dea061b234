import type { Socket } from "node:net";
import { SocketHandle } from "@precopy/linux";
import type { NativeThread } from "@precopy/linux";
import { MigrationError, formatAddress } from "@precopy/protocol";
import type { Address } from "@precopy/protocol";
import type { TlsIdentity } from "@precopy/security";
import type { ChannelThreads } from "./channel-threads.js";
import type { HttpHead } from "./http-head.js";
import { takeDescriptor } from "./take-descriptor.js";
import type { FromTlsEnd, ToTlsEnd } from "./tls-end.js";

/** A TLS connection that lives in the thread which will carry its channel: nothing is encrypted on the main thread. */
export class SecuredSocket {
  readonly #threads: ChannelThreads;
  readonly #thread: NativeThread;
  readonly #handle: SocketHandle;
  #isOver = false;
  #onHead: (head: HttpHead) => void = () => {};
  #onEnd: (reason: MigrationError) => void = () => {};

  private constructor(threads: ChannelThreads, handle: SocketHandle) {
    this.#threads = threads;
    this.#handle = handle;
    this.#thread = threads.take();
    this.#thread.on("message", this.#onMessage).on("error", this.#onError);
  }

  /**
   * The listening side: shakes hands, looks at the client's certificate, and reads what it asks for.
   * @param hello what was read of the socket. @throws {MigrationError} ERR_TLS_..., of which the client was told
   */
  static async accept(
    socket: Socket,
    hello: Buffer,
    peer: string,
    { settings }: TlsIdentity,
    threads: ChannelThreads,
  ): Promise<{ secured: SecuredSocket; head: HttpHead }> {
    const secured = new SecuredSocket(threads, await takeDescriptor(socket));
    return secured.#begin((fd) => ({ type: "tls-accept", fd, hello, settings, peer }));
  }

  /**
   * The side that connects: shakes hands, looks at the server's certificate, and asks.
   * @param request a whole head of HTTP. @param signal ends it before it has begun. @throws {MigrationError} ERR_TLS_..., ERR_UNREACHABLE
   */
  static async connect(
    socket: Socket,
    to: Address,
    request: string,
    identity: TlsIdentity,
    threads: ChannelThreads,
    signal: AbortSignal,
  ): Promise<{ secured: SecuredSocket; head: HttpHead }> {
    const secured = new SecuredSocket(threads, await takeDescriptor(socket));
    const peer = formatAddress(to);
    const { settings } = identity;
    const abort = (): void => secured.destroy();
    signal.addEventListener("abort", abort, { once: true });
    try {
      signal.throwIfAborted();
      return await secured.#begin((fd) => ({
        type: "tls-connect",
        fd,
        host: to.host,
        peer,
        request,
        settings,
        session: identity.sessionWith(peer),
      }));
    } catch (error) {
      secured.destroy();
      throw error;
    } finally {
      signal.removeEventListener("abort", abort);
    }
  }

  async #begin(order: (fd: number) => ToTlsEnd): Promise<{ secured: SecuredSocket; head: HttpHead }> {
    const head = new Promise<HttpHead>((resolve, reject) => {
      this.#onHead = resolve;
      this.#onEnd = reject;
    });
    this.#tell(order(this.#handle.duplicate()));
    return { secured: this, head: await head };
  }

  get destroyed(): boolean {
    return this.#isOver;
  }

  /** That it breaks is told to whoever opens it, or has. */
  on(_event: "error", _listener: () => void): this {
    return this;
  }

  destroy(): void {
    if (this.#isOver) return;
    this.#handle.shutdown();
    this.#tell({ type: "tls-close" });
  }

  /** The last word; the connection ends behind it. */
  refuse(answer: string): void {
    if (!this.#isOver) this.#tell({ type: "tls-answer", answer });
  }

  /** Thread and descriptor are the caller's now. The thread's next order, to send or to receive, is for this connection. */
  release(): { readonly thread: NativeThread; readonly handle: SocketHandle } {
    this.#isOver = true;
    this.#thread.off("message", this.#onMessage).off("error", this.#onError);
    return { thread: this.#thread, handle: this.#handle };
  }

  /** For a thread that waits for more than a connection: what comes here in clear. The connection ends with it, and it with the connection. */
  relay(): SocketHandle {
    const { near, far } = SocketHandle.pair();
    this.#tell({ type: "tls-relay", fd: far });
    return near;
  }

  #tell(message: ToTlsEnd): void {
    this.#thread.postMessage(message);
  }

  readonly #onMessage = (message: FromTlsEnd): void => {
    if (message.type === "tls-head") this.#onHead(message.head);
    else if (message.type === "tls-ended")
      this.#over(new MigrationError(message.code ?? "ERR_LINK_LOST", message.message || "The channel was closed"), true);
  };
  readonly #onError = (cause: Error): void => this.#over(new MigrationError("ERR_INTERNAL", "A channel's thread ended", { cause }), false);

  #over(reason: MigrationError, isThreadThere: boolean): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#thread.off("message", this.#onMessage).off("error", this.#onError);
    this.#handle.close();
    if (isThreadThere) this.#threads.give(this.#thread);
    this.#onEnd(reason);
  }
}
