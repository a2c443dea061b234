import type { Arbitration } from "./commitment.js";
import type { NamedArbiter } from "./outgoing-migration.js";

/**
 * The arbiter's part in one attempt. The target becomes the owner by swapping (source, epochBefore) for (itself, epoch) before it runs the
 * guest; this side takes it back by swapping the same record for (itself, epoch + 1). Whoever comes first is right.
 */
export function arbitrationOf({ arbiter, owner }: NamedArbiter, guest: string, epochBefore: number, epoch: number): Arbitration {
  const ours = { owner, epoch: epoch + 1 };
  return {
    async takeBack(hasRefused) {
      const { isSwapped, record } = await arbiter.compareAndSwap(guest, epochBefore, ours);
      if (isSwapped || isOurs(record)) return true;
      // The target won the record and refused afterwards: it died in between, and never ran the guest.
      if (!hasRefused || record?.epoch !== epoch) return false;
      const again = await arbiter.compareAndSwap(guest, epoch, ours);
      return again.isSwapped || isOurs(again.record);
    },
  };

  function isOurs(record: { readonly owner: string; readonly epoch: number } | undefined): boolean {
    return record?.owner === owner && record.epoch === epoch + 1;
  }
}
