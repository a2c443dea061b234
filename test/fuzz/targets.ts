import { systemLz4 } from "@precopy/linux";
import { lz4Napi, zstdOfNode } from "@precopy/protocol/page-codec";
import { Token } from "@precopy/security";
import { answers, hello, port } from "./connection-targets.js";
import type { FuzzTarget } from "./fuzz-target.js";
import { bitmapPieces, faultRequests, messages } from "./message-targets.js";
import { blocks, deltas, packets, records } from "./page-targets.js";

const MAKERS: Readonly<Record<string, () => FuzzTarget | undefined>> = {
  packets,
  "lz4-napi": () => blocks("lz4-napi", lz4Napi()),
  "lz4-system": () => {
    const codec = systemLz4();
    return codec && blocks("lz4-system", codec);
  },
  zstd: () => zstdOfNode && blocks("zstd", zstdOfNode),
  xbzrle: deltas,
  messages,
  "bitmap-pieces": bitmapPieces,
  "fault-requests": faultRequests,
  records,
  "client-hello": hello,
  port: () => port("port"),
  "port-token": () => port("port-token", new Token("a token that is fuzzed")),
  answers,
};

export const targetNames = (): readonly string[] => Object.keys(MAKERS);
/** Undefined where this host has not what it reads with. */
export const makeTarget = (name: string): FuzzTarget | undefined => MAKERS[name]?.();
