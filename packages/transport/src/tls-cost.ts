import { once } from "node:events";
import { createConnection, createServer } from "node:net";
import type { Socket } from "node:net";
import { connect as connectTls, createServer as createTlsServer } from "node:tls";
import { Pieces, addressOf, hasAead, isLinuxAvailable } from "@precopy/linux";
import { ALPN_CHANNEL, CIPHER_SUITES, secretBytesOf } from "@precopy/security";
import type { TlsIdentity } from "@precopy/security";
import { RecordOpener, RecordSealer } from "./tls-records.js";

const BYTES = 2 ** 28;
const PIECE_BYTES = 2 ** 20;
const GIB = 2 ** 30;

export interface TlsCost {
  readonly cipher: string;
  /** Processor time that a GiB takes more than in clear, both ends together, s. */
  readonly secondsPerGib: number;
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
  return secondsSince(before);
}

/**
 * Measures what encryption costs here, in some tenths of a second. Undefined where that takes a server's certificate, and there is none.
 * @param identity undefined: in clear, of which it is asked what TLS would cost
 */
export async function measureTlsCost(identity: TlsIdentity | undefined): Promise<TlsCost | undefined> {
  if (isLinuxAvailable && hasAead()) return measureSealing();
  return identity?.settings.server && measureSockets(identity);
}

/** What the direct pump does more. */
function measureSealing(): TlsCost {
  const [suite = "TLS_AES_128_GCM_SHA256"] = CIPHER_SUITES;
  const secret = (): Buffer => Buffer.alloc(secretBytesOf(suite), 7);
  const opener = new RecordOpener({ suite, secret: secret() }, 0);
  const sealer = new RecordSealer({ suite, secret: secret() }, 0, (records) => {
    for (let at = 0; at < records.byteLength; ) {
      const part = records.subarray(at, at + opener.room.byteLength);
      opener.room.set(part);
      opener.open(part.byteLength);
      at += part.byteLength;
    }
    return true;
  });
  const piece = Buffer.alloc(PIECE_BYTES, 7);
  const pieces = new Pieces(1);
  const before = process.cpuUsage();
  for (let sent = 0; sent < BYTES; sent += PIECE_BYTES) {
    pieces.set(0, Number(addressOf(piece)), PIECE_BYTES);
    sealer.writeAll(pieces, 1);
  }
  const secondsPerGib = secondsSince(before);
  sealer.close();
  opener.close();
  return { cipher: suite, secondsPerGib };
}

function secondsSince(before: NodeJS.CpuUsage): number {
  const { user, system } = process.cpuUsage(before);
  return ((user + system) / 1e6) * (GIB / BYTES);
}

/** What Node's own sockets do more, which the portable pump takes. */
async function measureSockets(identity: TlsIdentity): Promise<TlsCost> {
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
    const plain = await carry(plainFrom, plainTo);
    return { cipher: tlsFrom.getCipher().name, secondsPerGib: (await carry(tlsFrom, tlsTo)) - plain };
  } finally {
    for (const socket of sockets) socket.destroy();
    plainServer.close();
    tlsServer.close();
  }
}
