import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CREDENTIAL_FILES } from "@precopy/security";
import { CertificateAuthority } from "@precopy/security/authority";

const DAY_MS = 86_400_000;
/** How agents let each other in. tls-portable: by Node's own TLS, which agents fall back to where its OpenSSL cannot be called. */
export const WAYS = ["plain", "token", "tls", "tls-portable"] as const;
export type Way = (typeof WAYS)[number];

/** Certificates and a token for both agents, for as long as `use` takes. */
export async function withSecrets<T>(use: (argumentsOf: (way: Way) => readonly string[]) => Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), "precopy-bench-tls-"));
  try {
    const validity = { from: new Date(Date.now() - DAY_MS), to: new Date(Date.now() + DAY_MS) };
    const authority = await CertificateAuthority.create("bench", validity);
    const creds = join(folder, "creds");
    mkdirSync(creds);
    const write = (name: string, text: string): void => {
      writeFileSync(join(creds, name), text);
      chmodSync(join(creds, name), 0o600);
    };
    write(CREDENTIAL_FILES.ca, authority.pair.cert);
    const [server, client] = await Promise.all(
      (["server", "client"] as const).map((side) => authority.issue({ names: ["127.0.0.1"], side, ...validity })),
    );
    if (server === undefined || client === undefined) throw new Error("Two sides are two certificates");
    write(CREDENTIAL_FILES.serverCert, server.cert);
    write(CREDENTIAL_FILES.serverKey, server.key);
    write(CREDENTIAL_FILES.clientCert, client.cert);
    write(CREDENTIAL_FILES.clientKey, client.key);
    const token = join(folder, "token");
    writeFileSync(token, "a token of the bench's agents", { mode: 0o600 });
    const tls = ["--tls-creds", creds];
    const args = { plain: [], token: ["--token-file", token], tls, "tls-portable": [...tls, "--pump", "portable"] };
    return await use((way) => args[way]);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
