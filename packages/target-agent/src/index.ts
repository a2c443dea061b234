export { CAPABILITIES } from "./admission.js";
export type { TargetAgentOptions } from "./incoming-migration.js";
export { TargetAgent } from "./target-agent.js";
