import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { inspect } from "node:util";
import { Token } from "./token.js";
import type { TokenUse } from "./token.js";

const use = (given: Partial<TokenUse> = {}): TokenUse => ({
  nonce: "0".repeat(32),
  clientNonce: "1".repeat(32),
  path: "/v1/control",
  binding: Buffer.alloc(0),
  ...given,
});
const token = new Token("sixteen bytes at the least");

describe("Token", () => {
  it("is proved by whoever has it, for this use and this side only", () => {
    const proof = new Token("sixteen bytes at the least").proofOf("client", use());
    assert.ok(token.isProof("client", use(), proof));
    assert.ok(!token.isProof("server", use(), proof));
    const others = [{ nonce: "2".repeat(32) }, { clientNonce: "2".repeat(32) }, { path: "/v1/events" }, { binding: Buffer.alloc(32) }];
    for (const other of others) assert.ok(!token.isProof("client", use(other), proof), JSON.stringify(other));
    assert.ok(!new Token("sixteen bytes at the most?").isProof("client", use(), proof));
    for (const wrong of ["", proof.slice(1), `${proof}0`, proof.toUpperCase()]) assert.ok(!token.isProof("client", use(), wrong));
  });

  it("makes of one told secret another for each token", () => {
    const told = Buffer.alloc(32, 1);
    assert.deepEqual(token.channelSecret(told), new Token("sixteen bytes at the least").channelSecret(told));
    assert.notDeepEqual(token.channelSecret(told), new Token("sixteen bytes at the most?").channelSecret(told));
    assert.notDeepEqual(token.channelSecret(told), told);
  });

  it("is read from a file, white space around it aside, that others cannot read", () => {
    const folder = mkdtempSync(join(tmpdir(), "precopy-token-"));
    const file = join(folder, "token");
    try {
      writeFileSync(file, "sixteen bytes at the least\n", { mode: 0o600 });
      assert.ok(token.isProof("client", use(), Token.load(file).proofOf("client", use())));
      if (process.platform !== "win32") {
        chmodSync(file, 0o644);
        assert.throws(() => Token.load(file), { code: "ERR_TOKEN_FILE", message: /can be read by every user.*mode 644.*chmod/ });
      }
      writeFileSync(join(folder, "short"), "fifteen bytes..\n\n", { mode: 0o600 });
      assert.throws(() => Token.load(join(folder, "short")), { code: "ERR_TOKEN_FILE", message: /15 bytes/ });
      assert.throws(() => Token.load(join(folder, "none")), { code: "ERR_TOKEN_FILE", message: /Cannot read/ });
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it("is never in what a Token shows of itself", () => assert.doesNotMatch(`${JSON.stringify(token)} ${inspect(token)}`, /sixteen/));
});
