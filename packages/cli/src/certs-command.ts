import { randomBytes } from "node:crypto";
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { MigrationError } from "@precopy/protocol";
import { CREDENTIAL_FILES } from "@precopy/security";
import { CertificateAuthority } from "@precopy/security/authority";
import type { KeyPair } from "@precopy/security";
import type { CertsInitOptions, CertsIssueOptions } from "./certs-args.js";
import { printJson } from "./run-context.js";
import type { RunContext } from "./run-context.js";

const CA_KEY = "ca-key.pem";
const SECRET = 0o600;
const PUBLIC = 0o644;
const DAY_MS = 24 * 60 * 60 * 1000;

const validFor = (days: number, now = Date.now()): { from: Date; to: Date } => ({ from: new Date(now), to: new Date(now + days * DAY_MS) });

/** @throws {MigrationError} ERR_PARAMETER if a file is there, or cannot be written */
function writeNew(folder: string, files: Readonly<Record<string, { readonly text: string; readonly mode: number }>>): void {
  const there = Object.keys(files).find((name) => existsSync(join(folder, name)));
  if (there !== undefined) throw new MigrationError("ERR_PARAMETER", `${join(folder, there)} is there already: it is not written over`);
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    for (const [name, { text, mode }] of Object.entries(files)) {
      writeFileSync(join(folder, name), text, { mode, flag: "wx" });
      chmodSync(join(folder, name), mode); // whatever the mask is
    }
  } catch (cause) {
    throw new MigrationError("ERR_PARAMETER", `Cannot write to ${folder}`, { cause });
  }
}

function readAuthority(folder: string): KeyPair {
  try {
    return { cert: readFileSync(join(folder, CREDENTIAL_FILES.ca), "utf8"), key: readFileSync(join(folder, CA_KEY), "utf8") };
  } catch (cause) {
    throw new MigrationError(
      "ERR_PARAMETER",
      `${folder} holds no certificate authority: \`precopy certs init --dir ${folder}\` makes one`,
      { cause },
    );
  }
}

/** `precopy certs init`. @throws {MigrationError} ERR_PARAMETER */
export async function runCertsInit({ dir, days, isJson }: CertsInitOptions, run: RunContext): Promise<void> {
  const validity = validFor(days);
  // Its own name, so that "issued by" tells one lab's from another's.
  const { cert, key } = (await CertificateAuthority.create(`precopy lab CA ${randomBytes(3).toString("hex")}`, validity)).pair;
  const folder = resolve(dir);
  writeNew(folder, { [CREDENTIAL_FILES.ca]: { text: cert, mode: PUBLIC }, [CA_KEY]: { text: key, mode: SECRET } });
  if (isJson) return printJson(run, { type: "authority", dir: folder, "valid-until": validity.to.toISOString() });
  run.output.write(
    `wrote ${dir}: ${CREDENTIAL_FILES.ca} ${CA_KEY}, valid until ${validity.to.toISOString().slice(0, 10)}\n` +
      `Keep ${join(dir, CA_KEY)} on this host. For each host: precopy certs issue --dir ${dir} NAME [ADDRESS...]\n`,
  );
}

/** `precopy certs issue`. @throws {MigrationError} ERR_PARAMETER */
export async function runCertsIssue({ dir, out, names, days, isJson }: CertsIssueOptions, run: RunContext): Promise<void> {
  const authority = await CertificateAuthority.load(readAuthority(resolve(dir)));
  const validity = validFor(days);
  const server = await authority.issue({ names, side: "server", ...validity });
  const client = await authority.issue({ names, side: "client", ...validity });
  const folder = out ?? join(dir, names[0] ?? "");
  const { ca, serverCert, serverKey, clientCert, clientKey } = CREDENTIAL_FILES;
  writeNew(resolve(folder), {
    [ca]: { text: authority.pair.cert, mode: PUBLIC },
    [serverCert]: { text: server.cert, mode: PUBLIC },
    [serverKey]: { text: server.key, mode: SECRET },
    [clientCert]: { text: client.cert, mode: PUBLIC },
    [clientKey]: { text: client.key, mode: SECRET },
  });
  const until = validity.to.toISOString();
  if (isJson) return printJson(run, { type: "certificates", dir: resolve(folder), names, "valid-until": until });
  run.output.write(
    `wrote ${folder}: ${[ca, serverCert, serverKey, clientCert, clientKey].join(" ")}, for ${names.join(", ")}, valid until ${until.slice(0, 10)}\n` +
      `Copy the folder to ${names[0] ?? ""}, and start its agents with --tls-creds.\n`,
  );
}
