// What every thread may load. Messages (zod, msgpackr) take a thread 100 ms to load and page blocks a compressor, so they have entries of their own:
// @precopy/protocol/control and @precopy/protocol/page-codec.
export * from "./address.js";
export * from "./bitmap-pieces.js";
export type * from "./control.js";
export * from "./errors.js";
export type * from "./forecast.js";
export * from "./fault-request.js";
export * from "./frame.js";
export * from "./journal-entry.js";
export * from "./limits.js";
export * from "./ownership.js";
export * from "./packet.js";
export * from "./packet-decoder.js";
export * from "./parameters.js";
export * from "./plain-data.js";
export * from "./progress.js";
export * from "./quantities.js";
export * from "./source-state.js";
export * from "./stripe.js";
export * from "./target-state.js";
export * from "./word-blocks.js";
export * from "./xbzrle.js";
