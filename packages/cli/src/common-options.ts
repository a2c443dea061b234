import { Argument, Option } from "@commander-js/extra-typings";
import type { DirtyLogKind } from "@precopy/guest";
import { DEFAULT_PORT, MigrationError, formatAddress, isLoopback } from "@precopy/protocol";
import type { Address, MigrationParameters } from "@precopy/protocol";
import { option, parseChoice, parseName, parsePeer, parseText, read } from "./option-parsers.js";
import { NO_SECURITY } from "./security-options.js";
import type { SecurityOptions } from "./security-options.js";

export const DEFAULT_SWITCH_PORT = 4747;

const PUMPS = ["auto", "direct", "portable"] as const satisfies readonly MigrationParameters["pump"][];
const DIRTY_LOGS = ["auto", "mmu", "barrier"] as const satisfies readonly ("auto" | DirtyLogKind)[];
export type DirtyLogChoice = (typeof DIRTY_LOGS)[number];

export const jsonOption = () => new Option("--json", "write JSON, one object a line (default: text)");
/** For tests only, and therefore not in --help. */
export const faultPointsOption = () =>
  new Option("--fault-points", "obey PRECOPY_FAULT, PRECOPY_FORGET_DIRTY and PRECOPY_WITHOUT (default: refuse them)").hideHelp();
export const insecureOption = () =>
  new Option("--insecure", "accept unauthenticated peers on an address beyond loopback (default: refuse)");
export const reportOption = (what: string) => option("--report <FILE>", `write ${what} to this file as JSON (default: none)`, parseText);
export const dirtyLogOption = () =>
  option("--dirty-log <KIND>", `who tells which pages were written: ${DIRTY_LOGS.join(", ")}`, parseChoice(DIRTY_LOGS)).default(
    "auto" as const,
    "auto: mmu where this host can",
  );
export const pumpOption = () =>
  option("--pump <KIND>", `how pages reach the socket: ${PUMPS.join(", ")}`, parseChoice(PUMPS)).default(
    "auto" as const,
    "auto: direct where this host can",
  );
export const guestOption = () => option("--guest <ID>", "only if the agent holds this guest (default: whichever it holds)", parseName);

export const targetArgument = () =>
  new Argument("<HOST:PORT>", `agent to migrate to; port 1 to 65535, ${DEFAULT_PORT} if left out`).argParser((text: string) =>
    read("HOST:PORT", text, parsePeer(DEFAULT_PORT)),
  );

export function listenOf(
  listen: Address,
  isInsecure: boolean,
  { tlsCreds, tokenFile }: SecurityOptions = NO_SECURITY,
): { readonly listen: Address; readonly isInsecure: boolean } {
  if (!isInsecure && !isLoopback(listen.host) && tlsCreds === undefined && tokenFile === undefined)
    throw new MigrationError(
      "ERR_INSECURE_LISTEN",
      `--listen ${formatAddress(listen)} is open to the network, and peers are not authenticated`,
    );
  return { listen, isInsecure };
}
