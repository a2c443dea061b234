import { once } from "node:events";
import type { Socket } from "node:net";
import { SocketHandle } from "@precopy/linux";
import { MigrationError } from "@precopy/protocol";

export const closedTooEarly = (): MigrationError =>
  new MigrationError("ERR_LINK_LOST", "The connection was closed before its channel began");

/** Takes the descriptor of a connected socket over. Resolves when Node has let go of it: only then may it be made blocking. */
export async function takeDescriptor(socket: Socket): Promise<SocketHandle> {
  // Node keeps the handle there for every TCP socket; without a descriptor in it there is nothing to take over.
  const fd: unknown = Reflect.get(Reflect.get(socket, "_handle") ?? {}, "fd");
  if (typeof fd !== "number" || fd < 0) throw closedTooEarly();
  const handle = new SocketHandle(fd);
  const closed = once(socket, "close");
  socket.destroy();
  await closed;
  return handle;
}
