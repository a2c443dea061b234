import type { Socket } from "node:net";
import { HANDSHAKE_TIMEOUT_MS, PENDING_CONNECTIONS_MAX } from "@precopy/protocol";

/**
 * Connections of peers that have not shown yet what they are, and may. Each has HANDSHAKE_TIMEOUT_MS for it, however little it says at a time. When
 * there are too many the oldest has to go, so nobody keeps others out by holding connections open: an agent needs some milliseconds.
 */
export class PendingConnections {
  readonly #timers = new Map<Socket, NodeJS.Timeout>();

  get size(): number {
    return this.#timers.size;
  }

  enter(socket: Socket): void {
    this.#timers.set(
      socket,
      setTimeout(() => socket.destroy(), HANDSHAKE_TIMEOUT_MS),
    );
    socket.once("close", () => this.letIn(socket));
    for (const oldest of this.#timers.keys()) {
      if (this.#timers.size <= PENDING_CONNECTIONS_MAX) break;
      this.letIn(oldest);
      oldest.destroy();
    }
  }

  /** It is pending no longer. */
  letIn(socket: Socket): void {
    clearTimeout(this.#timers.get(socket));
    this.#timers.delete(socket);
  }

  close(): void {
    for (const socket of this.#timers.keys()) socket.destroy();
  }
}
