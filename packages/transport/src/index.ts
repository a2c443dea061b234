export * from "./control-channel.js";
export * from "./page-channel.js";
export * from "./page-packer.js";
export * from "./page-store.js";
export * from "./port.js";
export * from "./pump.js";
