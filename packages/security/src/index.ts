export * from "./channel-key.js";
export * from "./client-hello.js";
export * from "./credentials.js";
export * from "./record-keys.js";
export * from "./tls-identity.js";
export * from "./token.js";
