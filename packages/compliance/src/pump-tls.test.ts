import assert from "node:assert/strict";
import { createConnection } from "node:net";
import { after, describe, it } from "node:test";
import type { TestContext } from "node:test";
import type { GuestMemory } from "@precopy/guest";
import { hasAead, isLinuxAvailable } from "@precopy/linux";
import { PAGE_BYTES } from "@precopy/protocol";
import type { Address } from "@precopy/protocol";
import { ChannelThreads, LaneTable, PageChannel } from "@precopy/transport";
import type { PumpKind } from "@precopy/transport";
import { allPages, assertEqualImages, fillMixed, fillRandom } from "./guest-images.js";
import { labIdentity } from "./lab-identity.js";
import { PageTarget, serve, wholeLane, withMemories, withWire } from "./page-wire.js";
import { pumpSuite } from "./pump-suite.js";

const IMAGE_BYTES = 16 * 2 ** 20;
const tls = await labIdentity();
const skip = isLinuxAvailable && hasAead() ? false : "no system calls, or no OpenSSL to call";
pumpSuite("portable", false, { tls });
pumpSuite("direct", skip, { tls });

const PUMPS = ["direct", "portable"] as const satisfies PumpKind[];

describe("pumps with TLS", { skip }, () => {
  const threads = new ChannelThreads();
  after(() => threads.end());

  /** One round over one channel. Rejects if either end of it fails. */
  async function sendAll(from: GuestMemory, target: PageTarget, pump: PumpKind, through: Address): Promise<void> {
    const stored = new Promise<void>((resolve, reject) => {
      target.onDelivered = () => resolve();
      target.onFailure = reject;
    });
    const lanes = LaneTable.allocate(1).share();
    const order = {
      type: "send",
      pump,
      channel: 0,
      generation: 1,
      lanes,
      memory: from.share(),
      hashes: undefined,
      compression: "none",
    } as const;
    const sender = await PageChannel.open(await target.open(0, threads, through), threads, order);
    try {
      await Promise.all([sender.sendRound(1, allPages(from).words, 0, wholeLane(0)), stored]);
    } finally {
      await sender.end();
    }
  }

  for (const pump of PUMPS)
    for (const compression of ["none", "lz4"] as const)
      it(`of both kinds understand each other: ${pump} at the source, another one at the target (${compression})`, () =>
        withMemories([IMAGE_BYTES, IMAGE_BYTES], async (from, to) => {
          assert.ok(from !== undefined && to !== undefined);
          fillMixed(from);
          const pumpAtTarget = pump === "direct" ? "portable" : "direct";
          await withWire(from, to, { pump, pumpAtTarget, security: { tls }, threads, channels: 2, compression }, async (wire) => {
            for (let round = 1; round <= 3; round++) {
              fillRandom(from, 5 * round, 40, round);
              await wire.round(round, allPages(from));
              assertEqualImages(from, to, `after round ${round}`);
            }
          });
        }));

  for (const pump of PUMPS)
    it(`show nobody on the way a page (${pump})`, (context) =>
      withMemories([IMAGE_BYTES, IMAGE_BYTES], async (from, to) => {
        assert.ok(from !== undefined && to !== undefined);
        const secret = Buffer.from("what no one else may read. ");
        for (let page = 0; page < from.pages; page++) from.view(page, 1).set(Buffer.alloc(PAGE_BYTES, secret));
        const target = await PageTarget.listen(to, { pump, security: { tls }, threads, channels: 1, hasDigest: false });
        context.after(() => target.close());
        const passed: Buffer[] = [];
        const through = await wiretap(context, target.port.address, (bytes) => {
          passed.push(Buffer.from(bytes));
        });
        await sendAll(from, target, pump, through);
        assertEqualImages(from, to, "after the round");
        const all = Buffer.concat(passed);
        assert.ok(all.byteLength > IMAGE_BYTES, "all of it passed here");
        assert.equal(all.indexOf(secret), -1);
      }));

  for (const pump of PUMPS)
    it(`end a channel of which somebody on the way changed a bit, and nothing that was changed is stored (${pump})`, (context) =>
      withMemories([IMAGE_BYTES, IMAGE_BYTES], async (from, to) => {
        assert.ok(from !== undefined && to !== undefined);
        for (let page = 0; page < from.pages; page++) from.view(page, 1).fill(0x11);
        const target = await PageTarget.listen(to, { pump, security: { tls }, threads, channels: 1, hasDigest: false });
        context.after(() => target.close());
        let seen = 0;
        const through = await wiretap(context, target.port.address, (bytes) => {
          const at = IMAGE_BYTES / 2 - seen;
          if (at >= 0 && at < bytes.byteLength) bytes[at]! ^= 1;
          seen += bytes.byteLength;
        });
        await assert.rejects(sendAll(from, target, pump, through), { code: "ERR_LINK_LOST" });
        assert.equal((await target.failure()).code, "ERR_LINK_LOST");
        await target.endChannels();
        const stored = Buffer.from(to.view(0, to.pages));
        assert.ok(stored.includes(0x11), "what came before it is there");
        assert.ok(stored.every((byte) => byte === 0 || byte === 0x11));
      }));
});

/** Stands between both, and gives what the source sends to `look`, which may change it. */
const wiretap = (context: TestContext, to: Address, look: (bytes: Buffer) => void): Promise<Address> =>
  serve(context, (near) => {
    const far = createConnection({ host: to.host, port: to.port });
    far.on("error", () => {}).once("close", () => near.destroy());
    near.once("close", () => far.destroy());
    far.pipe(near);
    near.on("data", look).pipe(far);
  });
