import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { availableMemoryBytes } from "@precopy/linux";
import type { Guest } from "./guest.js";
import { GuestRegistry } from "./guest-registry.js";
import { Journal } from "./journal.js";

const MIB = 2 ** 20;
// A registry looks at nothing of a guest but its id.
const guestNamed = (id: string): Guest => ({ manifest: { id } }) as Guest;

function withRegistry(use: (registry: GuestRegistry, journal: Journal) => void, memoryLimitBytes: number | undefined = 64 * MIB): void {
  const folder = mkdtempSync(join(tmpdir(), "precopy-registry-"));
  const journal = new Journal(folder);
  try {
    use(new GuestRegistry(journal, memoryLimitBytes), journal);
  } finally {
    journal.close();
    rmSync(folder, { recursive: true });
  }
}

describe("GuestRegistry", () => {
  it("holds nobody at first, and require() says so with ERR_NO_GUEST", () =>
    withRegistry((registry) => {
      assert.equal(registry.guest, undefined);
      assert.throws(() => registry.require(), { code: "ERR_NO_GUEST" });
    }));

  it("gives a fresh guest the epoch after the highest one seen here, and an offered one the epoch offered", () =>
    withRegistry((registry, journal) => {
      const fresh = registry.reserve("g1", MIB, undefined);
      assert.equal(fresh.epoch, 1);
      fresh.release();
      journal.record("g1", 6, "aborted");
      const again = registry.reserve("g1", MIB, undefined);
      assert.equal(again.epoch, 7);
      again.release();
      assert.equal(registry.reserve("g1", MIB, 40).epoch, 40);
    }));

  it("refuses an epoch that was seen before with ERR_EPOCH, and takes the next one", () =>
    withRegistry((registry, journal) => {
      journal.record("g1", 6, "prepared");
      for (const epoch of [1, 5, 6]) assert.throws(() => registry.reserve("g1", MIB, epoch), { code: "ERR_EPOCH" }, `epoch ${epoch}`);
      assert.equal(registry.reserve("g1", MIB, 7).epoch, 7);
    }));

  it("does not boot anew a guest that moved away, or whose hand-over is in doubt, and says where it went", () =>
    withRegistry((registry, journal) => {
      const attempt = { peer: "h2:4646", session: "s" };
      const refused = (code: string, message: string): void => {
        assert.throws(() => registry.reserve("g1", MIB, undefined), { code, message });
        registry.reserve("g2", MIB, undefined).release(); // the place is free, and another guest boots
      };
      journal.record("g1", 6, "committed", attempt);
      refused("ERR_UNRESOLVED", "Guest g1 was handed to h2:4646 at epoch 6, and its answer was never written down");
      journal.record("g1", 6, "completed", attempt);
      refused("ERR_OWNED_ELSEWHERE", "Guest g1 moved to h2:4646 at epoch 6");
      // An offer that came to nothing does not bring it back.
      journal.record("g1", 7, "prepared", { peer: "h3:4646", session: "s" });
      journal.record("g1", 7, "refused", { peer: "h3:4646", session: "s" });
      refused("ERR_OWNED_ELSEWHERE", "Guest g1 moved to h2:4646 at epoch 6");
    }));

  it("names no peer that an older release did not write down", () =>
    withRegistry((registry, journal) => {
      journal.record("g1", 6, "completed");
      assert.throws(() => registry.reserve("g1", MIB, undefined), { message: "Guest g1 moved to another agent at epoch 6" });
    }));

  it("boots a guest anew after every other end, above all it met; after an attempt without an end the epoch after it may be taken, too", () =>
    withRegistry((registry, journal) => {
      for (const decision of [
        "booted",
        "offered",
        "aborted",
        "taken-back",
        "given-up",
        "lost",
        "prepared",
        "owner",
        "refused",
        "claimed",
      ] as const) {
        const guest = `g-${decision}`;
        journal.record(guest, 9, decision);
        const reservation = registry.reserve(guest, MIB, undefined);
        assert.equal(reservation.epoch, decision === "offered" || decision === "prepared" ? 11 : 10, decision);
        reservation.release();
      }
    }));

  it("takes an offer whatever became of the guest here, if its epoch is above all that were seen", () =>
    withRegistry((registry, journal) => {
      for (const decision of ["committed", "completed", "refused", "prepared", "given-up", "owner"] as const) {
        const guest = `g-${decision}`;
        journal.record(guest, 9, decision);
        assert.throws(() => registry.reserve(guest, MIB, 9), { code: "ERR_EPOCH" });
        const reservation = registry.reserve(guest, MIB, 10);
        assert.equal(reservation.epoch, 10, decision);
        reservation.release();
      }
    }));

  it("keeps the place: a second guest is refused with ERR_AGENT_FULL, the same one with ERR_GUEST_PRESENT", () =>
    withRegistry((registry) => {
      const reservation = registry.reserve("g1", MIB, 1);
      const refused = (): void => {
        assert.throws(() => registry.reserve("g1", MIB, 9), { code: "ERR_GUEST_PRESENT" });
        assert.throws(() => registry.reserve("g2", MIB, 9), { code: "ERR_AGENT_FULL" });
      };
      refused();
      const guest = guestNamed("g1");
      reservation.keep(guest);
      assert.equal(registry.require(), guest);
      refused();
      registry.remove(guest);
      assert.equal(registry.guest, undefined);
      assert.equal(registry.reserve("g2", MIB, 9).guestId, "g2");
    }));

  it("has the place free again after release, also after a second release that comes late", () =>
    withRegistry((registry) => {
      const first = registry.reserve("g1", MIB, 1);
      first.release();
      const second = registry.reserve("g2", MIB, 1);
      first.release();
      assert.throws(() => registry.reserve("g3", MIB, 1), { code: "ERR_AGENT_FULL" });
      second.release();
      assert.equal(registry.reserve("g3", MIB, 1).guestId, "g3");
    }));

  it("does not remove a guest that is not the one it holds", () =>
    withRegistry((registry) => {
      const guest = guestNamed("g1");
      registry.reserve("g1", MIB, 1).keep(guest);
      registry.remove(guestNamed("g1"));
      assert.equal(registry.guest, guest);
    }));

  it("refuses more than its limit with ERR_MEMORY_LIMIT and takes exactly the limit; a refusal keeps no place", () =>
    withRegistry((registry) => {
      assert.throws(() => registry.reserve("g1", 64 * MIB + 4096, 1), { code: "ERR_MEMORY_LIMIT" });
      assert.equal(registry.reserve("g2", 64 * MIB, 1).guestId, "g2");
    }));

  it(
    "refuses more than the system has with ERR_MEMORY",
    { skip: availableMemoryBytes() === undefined ? "the system does not say what it has" : false },
    () =>
      withRegistry((registry) => {
        assert.throws(() => registry.reserve("g1", 2 ** 44, 1), { code: "ERR_MEMORY" });
      }, 2 ** 44),
  );
});
