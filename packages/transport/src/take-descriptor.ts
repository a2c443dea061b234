import { once } from "node:events";
import type { Socket } from "node:net";
import { TLSSocket } from "node:tls";
import { SocketHandle, descriptorOf, isLinuxAvailable } from "@precopy/linux";
import { MigrationError } from "@precopy/protocol";

export const closedTooEarly = (): MigrationError =>
  new MigrationError("ERR_LINK_LOST", "The connection was closed before its channel began");

/** Of TLS a descriptor has the ciphertext only. */
export const mayTakeDescriptor = (socket: Socket): boolean => isLinuxAvailable && !(socket instanceof TLSSocket);

/** Takes the descriptor of a connected socket over. Resolves when Node has let go of it: only then may it be made blocking. */
export async function takeDescriptor(socket: Socket): Promise<SocketHandle> {
  if (!mayTakeDescriptor(socket)) throw new MigrationError("ERR_CAPABILITY", "No descriptor can be taken over here");
  const fd = descriptorOf(socket);
  if (fd === undefined) throw closedTooEarly();
  const handle = new SocketHandle(fd);
  const closed = once(socket, "close");
  socket.destroy();
  await closed;
  return handle;
}
