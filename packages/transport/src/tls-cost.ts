import { once } from "node:events";
import { createConnection, createServer } from "node:net";
import type { Socket } from "node:net";
import { connect as connectTls, createServer as createTlsServer } from "node:tls";
import { ALPN_CHANNEL } from "@precopy/security";
import type { TlsIdentity } from "@precopy/security";

const BYTES = 2 ** 28;
const PIECE_BYTES = 2 ** 20;
const GIB = 2 ** 30;

/** What a GiB over a connection of this host to itself takes, both ends together, in one thread. */
export interface TlsCost {
  readonly cipher: string;
  /** Processor time, s. */
  readonly plain: number;
  readonly tls: number;
}

/** Sends all, and resolves when all of it has arrived. @returns processor time for a GiB, s */
async function carry(from: Socket, to: Socket): Promise<number> {
  const piece = Buffer.alloc(PIECE_BYTES, 7);
  let left = BYTES;
  const arrived = new Promise<void>((resolve) => {
    to.on("data", (chunk: Buffer) => {
      left -= chunk.byteLength;
      if (left <= 0) resolve();
    });
  });
  const before = process.cpuUsage();
  for (let sent = 0; sent < BYTES; sent += PIECE_BYTES) if (!from.write(piece)) await once(from, "drain");
  await arrived;
  const { user, system } = process.cpuUsage(before);
  return ((user + system) / 1e6) * (GIB / BYTES);
}

/** Measures what encryption costs here, in some tenths of a second. @throws {MigrationError} ERR_TLS_CREDENTIALS without a server's certificate */
export async function measureTlsCost(identity: TlsIdentity): Promise<TlsCost> {
  const plainServer = createServer();
  const tlsServer = createTlsServer(identity.serverOptions(ALPN_CHANNEL));
  const sockets: Socket[] = [];
  try {
    const portOf = async (server: typeof plainServer): Promise<number> => {
      server.listen(0, "127.0.0.1");
      await once(server, "listening");
      const at = server.address();
      return at !== null && typeof at === "object" ? at.port : 0;
    };
    const [plainPort, tlsPort] = [await portOf(plainServer), await portOf(tlsServer)];
    const plainFrom = createConnection(plainPort, "127.0.0.1");
    const [plainTo] = (await once(plainServer, "connection")) as [Socket];
    const tlsFrom = connectTls({ host: "127.0.0.1", port: tlsPort, ...identity.connectOptions("127.0.0.1", ALPN_CHANNEL) });
    const [[tlsTo]] = (await Promise.all([once(tlsServer, "secureConnection"), once(tlsFrom, "secureConnect")])) as unknown as [[Socket]];
    sockets.push(plainFrom, plainTo, tlsFrom, tlsTo);
    for (const socket of sockets) socket.on("error", () => {});
    return { cipher: tlsFrom.getCipher().name, plain: await carry(plainFrom, plainTo), tls: await carry(tlsFrom, tlsTo) };
  } finally {
    for (const socket of sockets) socket.destroy();
    plainServer.close();
    tlsServer.close();
  }
}
