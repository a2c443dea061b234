// What only counts, and every command may load, has an entry of its own as well: @precopy/lab/sweep-summary.
export * from "./child.js";
export * from "./client.js";
export * from "./demo.js";
export * from "./line-chart.js";
export * from "./switch.js";
export * from "./sweep.js";
export * from "./sweep-plots.js";
export * from "./sweep-summary.js";
