export type { SourceAgentOptions, SourceSwitches } from "./outgoing-migration.js";
export { SourceAgent } from "./source-agent.js";
export type { HandoverCosts } from "./plan.js";
