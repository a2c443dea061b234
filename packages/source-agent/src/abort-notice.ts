import { setTimeout as sleep } from "node:timers/promises";
import { ABORT_TELL_MS, ACTIVE_TIMEOUT_MS, ASK_AGAIN_MS, MigrationError } from "@precopy/protocol";
import type { Address } from "@precopy/protocol";
import { ControlChannel } from "@precopy/transport";
import type { Security } from "@precopy/transport";
import type { Attempt } from "./control-link.js";

/** Where the target is, and what it is shown. */
interface Target {
  readonly to: Address;
  readonly security: Security | undefined;
}

/**
 * A target that was sent the state may be prepared, and waits for a word that was lost with the link. Tells it, for ABORT_TELL_MS at most, that
 * the attempt is over; it lets go of the memory then. Nothing depends on it but that memory.
 */
export async function tellAborted(target: Target, attempt: Attempt, reason: MigrationError, signal: AbortSignal): Promise<void> {
  for (const until = performance.now() + ABORT_TELL_MS; performance.now() < until && !signal.aborted; ) {
    if (await hasHeard(target, attempt, reason, signal).catch(() => false)) return;
    await sleep(ASK_AGAIN_MS, undefined, { signal }).catch(() => {}); // aborted: the loop ends
  }
}

async function hasHeard({ to, security }: Target, attempt: Attempt, reason: MigrationError, signal: AbortSignal): Promise<boolean> {
  const control = await ControlChannel.connect(to, signal, security);
  try {
    const late = (): MigrationError => new MigrationError("ERR_PEER_DEAD", "No answer");
    const answered = control.expect(["owner"], ACTIVE_TIMEOUT_MS, late);
    control.send({ type: "ask", ...attempt, hasImage: true });
    const { phase } = await answered;
    if (phase !== "prepared" && phase !== "receiving") return true;
    control.send({ type: "abort", code: reason.code, message: reason.message.slice(0, 1000) });
    return false; // asked once more: the abort may be lost, too
  } finally {
    control.close(reason);
  }
}
