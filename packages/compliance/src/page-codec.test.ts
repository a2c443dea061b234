import { it } from "node:test";
import { systemLz4 } from "@precopy/linux";
import { lz4Napi, zstdOfNode } from "@precopy/protocol/page-codec";
import { pageCodecSuite } from "./page-codec-suite.js";

pageCodecSuite("lz4-napi", lz4Napi(), lz4Napi());

if (zstdOfNode === undefined) it("Node's zstd", { skip: `Node ${process.versions.node} has none; 22.15 and later have` });
else pageCodecSuite("Node's zstd", zstdOfNode, zstdOfNode);

const system = systemLz4();
if (system === undefined) it("the system's LZ4", { skip: "no liblz4.so.1 of 1.9.4 or later here" });
else {
  pageCodecSuite("the system's LZ4", system, system);
  pageCodecSuite("the system's to lz4-napi", system, lz4Napi());
  pageCodecSuite("lz4-napi's to the system's", lz4Napi(), system);
}
