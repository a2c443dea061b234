import assert from "node:assert/strict";
import { endianness } from "node:os";
import { describe, it } from "node:test";
import { NIC_BYTES } from "@precopy/guest";
import { availableMemoryBytes } from "@precopy/linux";
import { MigrationError, PAGE_BYTES, PROTOCOL_VERSION } from "@precopy/protocol";
import type { ErrorCode } from "@precopy/protocol";
import type { ControlChannel } from "@precopy/transport";
import { checkAdmission } from "./admission.js";
import { MEMORY_BYTES, WHOLE, listen, offer, vcpu, workloads } from "./listening-target.js";
import type { Admit, Target } from "./listening-target.js";

/** Each offer that must be refused, why, and what the refusal has to name. */
const REFUSED: readonly (readonly [what: string, admit: Admit, code: ErrorCode, names: RegExp])[] = [
  ["another protocol version", offer({ protocolVersion: PROTOCOL_VERSION + 1 }), "ERR_PROTOCOL_VERSION", /version 5, we speak 4/],
  ["an older protocol version", offer({ protocolVersion: 0 }), "ERR_PROTOCOL_VERSION", /version 0/],
  ["another page size", offer({ pageBytes: 65536 }), "ERR_PAGE_SIZE", /65536 B/],
  ["another byte order", offer({ endianness: endianness() === "LE" ? "BE" : "LE" }), "ERR_ENDIANNESS", /host is (LE|BE)/],
  ["capabilities of a later release", offer({ capabilities: ["lz4", "postcopy", "tls-psk"] }), "ERR_CAPABILITY", /postcopy, tls-psk/],
  ["a workload that is not here", offer({}, { vcpus: [vcpu(WHOLE, { workload: "doom" })] }), "ERR_WORKLOAD_UNKNOWN", /"doom".*idle/],
  [
    "another file under a workload's name",
    offer({}, { vcpus: [vcpu(WHOLE), vcpu(WHOLE, { sha256: "0".repeat(64) })] }),
    "ERR_WORKLOAD_DIFFERS",
    /000000000000…/,
  ],
  [
    "a region that ends outside memory",
    offer({}, { vcpus: [vcpu({ start: PAGE_BYTES, bytes: MEMORY_BYTES })] }),
    "ERR_BAD_MESSAGE",
    /1048576 B at 4096/,
  ],
  [
    "a region that begins outside memory",
    offer({}, { vcpus: [vcpu({ start: 2 * MEMORY_BYTES, bytes: 0 })] }),
    "ERR_BAD_MESSAGE",
    /at 2097152/,
  ],
  ["a region that begins within a page", offer({}, { vcpus: [vcpu({ start: 100, bytes: PAGE_BYTES })] }), "ERR_BAD_MESSAGE", /at 100/],
  [
    "a second vCPU's region outside memory",
    offer({}, { vcpus: [vcpu(WHOLE), vcpu({ start: MEMORY_BYTES, bytes: 1 })] }),
    "ERR_BAD_MESSAGE",
    /1 B at/,
  ],
  ["a region that is no whole number of pages", offer({}, { vcpus: [vcpu({ start: 0, bytes: 100 })] }), "ERR_BAD_MESSAGE", /100 B at 0/],
  [
    "regions that share a page, in whatever order",
    offer({}, { vcpus: [vcpu({ start: 8192, bytes: 8192 }), vcpu({ start: 0, bytes: 12_288 })] }),
    "ERR_BAD_MESSAGE",
    /8192 B at 8192/,
  ],
  [
    "a region on top of the network card",
    offer({}, { vcpus: [vcpu(WHOLE)], devices: [{ kind: "nic", mac: "52:54:00:00:00:01" }] }),
    "ERR_BAD_MESSAGE",
    /1048576 B at 0/,
  ],
];

describe("checkAdmission", () => {
  it("admits what this release offers itself, with all capabilities and with none", () => {
    checkAdmission(offer(), workloads, false);
    checkAdmission(offer({ capabilities: [], digest: false }), workloads, false);
    checkAdmission(
      offer({}, { vcpus: [vcpu({ start: 0, bytes: PAGE_BYTES }), vcpu({ start: PAGE_BYTES, bytes: MEMORY_BYTES - PAGE_BYTES })] }),
      workloads,
      false,
    );
  });

  it("refuses a source that has an arbiter where this side has none, and the other way round: one of two would not ask it", () => {
    assert.throws(() => checkAdmission(offer({ arbiterEpoch: 1 }), workloads, false), { code: "ERR_CAPABILITY", message: /--arbiter/ });
    assert.throws(() => checkAdmission(offer(), workloads, true), { code: "ERR_CAPABILITY", message: /--arbiter/ });
    checkAdmission(offer({ arbiterEpoch: 1 }), workloads, true);
  });

  for (const [what, admit, code, names] of REFUSED)
    it(`refuses ${what} with ${code}, and names it`, () =>
      assert.throws(() => checkAdmission(admit, workloads, false), { name: "MigrationError", code, message: names }));

  it("says the version first: of a later release nothing else can be judged", () => {
    const strange = offer({ protocolVersion: 99, pageBytes: 1, capabilities: ["x"] }, { vcpus: [vcpu(WHOLE, { workload: "doom" })] });
    assert.throws(() => checkAdmission(strange, workloads, false), { code: "ERR_PROTOCOL_VERSION" });
  });
});

const refusalOf = (offered: Promise<ControlChannel>): Promise<MigrationError> =>
  offered.then(() => assert.fail("it was admitted"), MigrationError.from);

/** Nothing of a refused offer is left: no place, no memory, no word in the journal. */
function assertNothingReserved({ registry, agent, segments }: Target, guest = "g1"): void {
  assert.equal(agent.isReceiving, false);
  assert.equal(registry.guest, undefined);
  assert.equal(segments.taken, 0);
  assert.deepEqual(registry.journal.read(guest), []);
  registry.reserve("somebody-else", MEMORY_BYTES, 1).release(); // the place is free
}

describe("an offer", () => {
  it("that is refused reaches the source with its code, and leaves nothing reserved here", async (context) => {
    const target = await listen(context);
    for (const [what, admit, code] of REFUSED) {
      assert.equal((await refusalOf(target.offer(admit))).code, code, what);
      assertNothingReserved(target);
    }
  });

  it("that is admitted takes the place and the memory, so the test above can fail", async (context) => {
    const target = await listen(context);
    await target.offer(offer());
    assert.equal(target.agent.isReceiving, true);
    assert.equal(target.segments.taken, 1);
    assert.throws(() => target.registry.reserve("somebody-else", MEMORY_BYTES, 1), { code: "ERR_AGENT_FULL" });
  });

  it("of more memory than --memory-limit is refused with ERR_MEMORY_LIMIT", async (context) => {
    const limited = await listen(context, MEMORY_BYTES);
    assert.equal((await refusalOf(limited.offer(offer({}, { memoryBytes: MEMORY_BYTES + PAGE_BYTES })))).code, "ERR_MEMORY_LIMIT");
    assertNothingReserved(limited);
  });

  const unknown = availableMemoryBytes() === undefined ? "this system does not say how much memory it has" : false;
  it("of more memory than there is is refused with ERR_MEMORY", { skip: unknown }, async (context) => {
    const open = await listen(context);
    assert.equal((await refusalOf(open.offer(offer({}, { memoryBytes: 2 ** 44 })))).code, "ERR_MEMORY");
    assertNothingReserved(open);
  });

  it("of a guest that is on its way here already, or of another one meanwhile, is refused, and the one on its way stays", async (context) => {
    const target = await listen(context);
    await target.offer(offer({ epoch: 2 }));
    assert.equal((await refusalOf(target.offer(offer({ epoch: 2 })))).code, "ERR_GUEST_PRESENT");
    assert.equal((await refusalOf(target.offer(offer({}, { id: "g2" })))).code, "ERR_AGENT_FULL");
    assert.equal(target.agent.isReceiving, true);
    assert.equal(target.segments.taken, 1);
  });

  it("at an epoch that was seen here before is refused with ERR_EPOCH", async (context) => {
    const target = await listen(context);
    target.registry.journal.record("g1", 5, "aborted");
    for (const epoch of [1, 4, 5]) assert.equal((await refusalOf(target.offer(offer({ epoch })))).code, "ERR_EPOCH", String(epoch));
    assert.equal(target.segments.taken, 0);
    await target.offer(offer({ epoch: 6 }));
  });

  it("that fails while its guest is being made gives the place back", async (context) => {
    const target = await listen(context);
    target.segments.isEmpty = true;
    assert.equal((await refusalOf(target.offer(offer()))).code, "ERR_MEMORY");
    assertNothingReserved(target);
    target.segments.isEmpty = false;
    const nic = { kind: "nic", mac: "52:54:00:00:00:01" } as const;
    const behindNic = [vcpu({ start: NIC_BYTES, bytes: MEMORY_BYTES - NIC_BYTES })];
    assert.equal((await refusalOf(target.offer(offer({}, { devices: [nic], vcpus: behindNic })))).code, "ERR_DEVICE_UNAVAILABLE");
    assert.equal(target.agent.isReceiving, false);
    await target.offer(offer());
  });

  it("to an agent that is shutting down is refused with ERR_SHUTTING_DOWN", async (context) => {
    const target = await listen(context);
    await target.agent.close();
    assert.equal((await refusalOf(target.offer(offer()))).code, "ERR_SHUTTING_DOWN");
    assertNothingReserved(target);
  });

  it("at a later epoch takes the place of an older one of the same guest: its source gave that up", async (context) => {
    const target = await listen(context);
    const older = await target.offer(offer({ epoch: 2 }));
    const told = older.expect(["failed"], 5000, () => new MigrationError("ERR_PEER_DEAD", "no word"));
    await target.offer(offer({ epoch: 3 }));
    assert.equal((await told).code, "ERR_EPOCH");
    assert.equal(target.agent.isReceiving, true);
  });
});
