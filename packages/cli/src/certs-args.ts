import type { Command } from "@commander-js/extra-typings";
import { jsonOption } from "./common-options.js";
import { option, parseText, parseWhole } from "./option-parsers.js";

export interface CertsInitOptions {
  readonly dir: string;
  readonly days: number;
  readonly isJson: boolean;
}

export interface CertsIssueOptions {
  /** Of the authority. */
  readonly dir: string;
  /** Undefined: a folder of the first name's in `dir`. */
  readonly out: string | undefined;
  /** Host names and addresses; never empty. */
  readonly names: readonly string[];
  readonly days: number;
  readonly isJson: boolean;
}

export interface CertsActions {
  certsInit(options: CertsInitOptions): Promise<void>;
  certsIssue(options: CertsIssueOptions): Promise<void>;
}

const authorityOption = () => option("--dir <DIR>", "folder of the certificate authority", parseText).default("precopy-ca");
const daysOption = (days: number) => option("--days <N>", "how long it is valid; 1 to 36500", parseWhole(1, 36_500)).default(days);

export function addCerts(program: Command, actions: CertsActions): void {
  const certs = program.command("certs").description("certificates for --tls-creds, from a private authority, for a lab");
  certs
    .command("init")
    .description("make the authority")
    .addOption(authorityOption())
    .addOption(daysOption(3650))
    .addOption(jsonOption())
    .action((given) => actions.certsInit({ dir: given.dir, days: given.days, isJson: given.json === true }));
  certs
    .command("issue")
    .description("make a folder of certificates for the agents of one host")
    .argument("<NAME...>", "names and addresses by which the host is connected to; the first one is who it is for --tls-authz")
    .addOption(authorityOption())
    .addOption(option("--out <DIR>", "folder to be made (default: one of the first name's in --dir)", parseText))
    .addOption(daysOption(365))
    .addOption(jsonOption())
    .action((names, given) => actions.certsIssue({ dir: given.dir, out: given.out, names, days: given.days, isJson: given.json === true }));
}
