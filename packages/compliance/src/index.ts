export * from "./dirty-log-suite.js";
export * from "./hostile-writers.js";
export * from "./tracked-guest.js";
