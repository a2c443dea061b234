import { resolve } from "node:path";
import { Option } from "@commander-js/extra-typings";
import type { Command, OptionValues } from "@commander-js/extra-typings";
import { option, parseText, read, refuse } from "./option-parsers.js";

/** What an agent shows to its peers, and wants to see of them; files and folders are read when it starts. */
export interface SecurityOptions {
  /** Absolute path of the folder of certificates; undefined: no TLS. */
  readonly tlsCreds: string | undefined;
  /** Name to be found in targets' certificates; undefined: the host that is connected to. */
  readonly tlsHostname: string | undefined;
  /** Names of which a source's certificate must have one; undefined: every certificate of the CA will do. */
  readonly tlsAuthz: readonly string[] | undefined;
  /** Absolute path of the file that holds the token; undefined: none. */
  readonly tokenFile: string | undefined;
}

export const NO_SECURITY: SecurityOptions = { tlsCreds: undefined, tlsHostname: undefined, tlsAuthz: undefined, tokenFile: undefined };

interface GivenSecurity {
  readonly tlsCreds?: string;
  readonly tlsHostname?: string;
  readonly tlsAuthz?: readonly string[];
  readonly tokenFile?: string;
}

const parseNames = (text: string, previous: readonly string[] | undefined): readonly string[] => [
  ...(previous ?? []),
  ...text.split(",").map((name) => (name.trim() === "" ? refuse(`"${text}" has an empty name`) : name.trim())),
];

export const withSecurity = <A extends unknown[], O extends OptionValues, G extends OptionValues>(command: Command<A, O, G>) =>
  command
    .addOption(
      option(
        "--tls-creds <DIR>",
        "speak TLS 1.3, and only that, with the certificates there: ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem, client-key.pem (default: no TLS)",
        parseText,
      ),
    )
    .addOption(
      option(
        "--tls-hostname <NAME>",
        "name to be found in the certificate of a target (default: the host that is connected to)",
        parseText,
      ),
    )
    .addOption(
      new Option(
        "--tls-authz <NAMES>",
        "names of sources, separated by commas, of which a certificate must have one; repeatable (default: every certificate of the CA)",
      ).argParser((text: string, previous: readonly string[] | undefined) => read("--tls-authz", text, () => parseNames(text, previous))),
    )
    .addOption(
      option(
        "--token-file <FILE>",
        "a secret that both agents have, 16 to 4096 bytes; only proofs of it cross the network (default: none)",
        parseText,
      ),
    );

/** @throws {MigrationError} ERR_PARAMETER */
export function securityOf({ tlsCreds, tlsHostname, tlsAuthz, tokenFile }: GivenSecurity): SecurityOptions {
  if (tlsCreds === undefined && tlsHostname !== undefined) refuse(`--tls-hostname ${tlsHostname} needs --tls-creds`);
  if (tlsCreds === undefined && tlsAuthz !== undefined) refuse(`--tls-authz ${tlsAuthz.join(",")} needs --tls-creds`);
  return {
    tlsCreds: tlsCreds === undefined ? undefined : resolve(tlsCreds),
    tlsHostname,
    tlsAuthz,
    tokenFile: tokenFile === undefined ? undefined : resolve(tokenFile),
  };
}

/** The same for another process of ours. */
export function securityArguments({ tlsCreds, tlsHostname, tlsAuthz, tokenFile }: SecurityOptions): string[] {
  return [
    ...(tlsCreds === undefined ? [] : ["--tls-creds", tlsCreds]),
    ...(tlsHostname === undefined ? [] : ["--tls-hostname", tlsHostname]),
    ...(tlsAuthz === undefined ? [] : ["--tls-authz", tlsAuthz.join(",")]),
    ...(tokenFile === undefined ? [] : ["--token-file", tokenFile]),
  ];
}
