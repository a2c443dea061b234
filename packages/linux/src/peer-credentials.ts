import { declare, isLinuxAvailable, systemCallError } from "./library.js";
import { descriptorOf } from "./socket.js";

const getsockopt = declare("int getsockopt(int fd, int level, int option, void *value, void *bytes)");
const SOL_SOCKET = 1;
const SO_PEERCRED = 17;

/** The user who connected to a Unix socket of Node's, at the moment when it did; undefined where the system cannot be asked. @throws {MigrationError} ERR_SYSTEM_CALL */
export function userOf(socket: object): number | undefined {
  const fd = isLinuxAvailable ? descriptorOf(socket) : undefined;
  if (fd === undefined) return undefined; // or it is closed already
  const credentials = new Int32Array(3); // struct ucred: process, user, group
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, credentials, new Uint32Array([credentials.byteLength])) !== 0)
    throw systemCallError("getsockopt");
  return credentials[1];
}
