export * from "./boot-id.js";
export * from "./file-lock.js";
export { addressOf, isLinuxAvailable } from "./library.js";
export * from "./lz4.js";
export * from "./memory.js";
export * from "./native-thread.js";
export * from "./pagemap-scan.js";
export * from "./socket.js";
export * from "./userfaultfd.js";
