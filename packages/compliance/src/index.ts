export * from "./dirty-log-suite.js";
export * from "./hostile-writers.js";
export * from "./tracked-guest.js";
export * from "./page-wire.js";
export * from "./pump-suite.js";
export * from "./resume-suite.js";
