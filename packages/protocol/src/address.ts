import { MigrationError } from "./errors.js";

/** Where a listener is or shall be. `host` never has brackets; `port` 0 lets the system choose. */
export interface Address {
  readonly host: string;
  readonly port: number;
}

export const DEFAULT_PORT = 4646;

/** With or without a zone, as in fe80::1%eth0; URL has no zones, so that part is left out of the check. */
const isIpv6 = (host: string): boolean =>
  host.includes(":") && !/[[\]/@\s]/.test(host) && URL.canParse(`http://[${host.replace(/%[\w.-]+$/, "")}]`);

/** Accepts `HOST:PORT`, `HOST`, `[IPv6]:PORT`, `[IPv6]`, a bare IPv6 address and `:PORT` (all IPv4 interfaces). @throws ERR_ADDRESS */
export function parseAddress(text: string, defaultPort = DEFAULT_PORT): Address {
  const isBareIpv6 = isIpv6(text);
  const match = isBareIpv6 ? [text, text] : (/^\[(.+)\](?::(\d+))?$/.exec(text) ?? /^([^:[\]/\s]*)(?::(\d+))?$/.exec(text));
  if (match === null || text === "" || (text.startsWith("[") && !isIpv6(match[1] ?? "")))
    throw new MigrationError("ERR_ADDRESS", `"${text}" is not an address`);
  const port = match[2] === undefined ? defaultPort : Number(match[2]);
  if (port > 65535) throw new MigrationError("ERR_ADDRESS", `Port ${port} is above 65535`);
  return { host: match[1] === "" || match[1] === undefined ? "0.0.0.0" : match[1], port };
}

export const formatAddress = ({ host, port }: Address): string => (host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`);

export const isLoopback = (host: string): boolean => host === "localhost" || host === "::1" || /^127\.\d+\.\d+\.\d+$/.test(host);
