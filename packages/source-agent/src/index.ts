export type { SourceAgentOptions } from "./outgoing-migration.js";
export { SourceAgent } from "./source-agent.js";
