export * from "./child.js";
export * from "./client.js";
export * from "./demo.js";
export * from "./switch.js";
