export * from "./estimate.js";
export * from "./migration.js";
export * from "./policy.js";
export * from "./ports.js";
export * from "./round-loop.js";
export * from "./round-stats.js";
export * from "./switchover.js";
export * from "./source-handover.js";
