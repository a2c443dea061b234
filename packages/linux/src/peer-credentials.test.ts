import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { connect, createServer } from "node:net";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { it } from "node:test";
import { isLinuxAvailable } from "./library.js";
import { userOf } from "./peer-credentials.js";

it("tells who connected to a Unix socket, and nothing of one that is closed", {
  skip: !isLinuxAvailable && "no system calls here",
}, async () => {
  const folder = mkdtempSync(join(tmpdir(), "precopy-credentials-"));
  const server = createServer();
  server.listen(join(folder, "s"));
  await once(server, "listening");
  const client = connect(join(folder, "s"));
  const [accepted] = (await once(server, "connection")) as [Socket];
  assert.equal(userOf(accepted), process.getuid?.());
  client.destroy();
  accepted.destroy();
  await once(accepted, "close");
  assert.equal(userOf(accepted), undefined);
  server.close();
  rmSync(folder, { recursive: true });
});
