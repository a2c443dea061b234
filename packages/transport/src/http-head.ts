import { once } from "node:events";
import type { Socket } from "node:net";
import { HTTP_HEADER_BYTES_MAX, MigrationError } from "@precopy/protocol";

const END = "\r\n\r\n";

/** The head of a request or an answer of HTTP/1.1, where nothing may come behind it. */
export interface HttpHead {
  /** The first line. */
  readonly start: string;
  /** By their names in lower case; of one that came twice, both, after a comma. */
  readonly headers: ReadonlyMap<string, string>;
  /** Bytes behind it came with it. */
  readonly isFollowed: boolean;
}

/** Reads from a socket that nobody else reads. @throws {MigrationError} ERR_NOT_AN_AGENT if it has no end; and an Error if the socket closes first */
export async function readHead(socket: Socket): Promise<HttpHead> {
  let text = "";
  const closed = once(socket, "close").then(() => Promise.reject(new Error("closed before it answered")));
  closed.catch(() => {}); // awaited only while reading
  while (!text.includes(END)) {
    const chunk: unknown = socket.read();
    if (Buffer.isBuffer(chunk)) text += chunk.toString("latin1");
    else await Promise.race([once(socket, "readable"), closed]);
    if (text.length > HTTP_HEADER_BYTES_MAX) throw new MigrationError("ERR_NOT_AN_AGENT", "The head of what the peer says has no end");
  }
  socket.removeAllListeners("readable");
  return parseHead(text);
}

/** @param text with the empty line that ends the head */
export function parseHead(text: string): HttpHead {
  const end = text.indexOf(END);
  const [start = "", ...lines] = text.slice(0, end).split("\r\n");
  const headers = new Map<string, string>();
  for (const line of lines) {
    const colon = line.indexOf(":");
    const name = line.slice(0, Math.max(colon, 0)).toLowerCase();
    const value = line.slice(colon + 1).trim();
    const before = headers.get(name);
    headers.set(name, before === undefined ? value : `${before}, ${value}`);
  }
  return { start, headers, isFollowed: text.length > end + END.length };
}

/** @param lines `Name: value` each; none may come from a peer */
export const formatHead = (start: string, lines: readonly string[]): string => `${[start, ...lines].join("\r\n")}${END}`;
