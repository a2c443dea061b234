import { CONNECT_TIMEOUT_MS, MigrationError, formatAddress } from "@precopy/protocol";
import type { Address, Ownership } from "@precopy/protocol";
import { ControlChannel } from "./control-channel.js";
import type { Security } from "./dial.js";

/** Asks another agent what it knows of a guest. @throws {MigrationError} ERR_UNREACHABLE, ERR_NOT_AN_AGENT, ERR_PEER_DEAD */
export async function askWhoOwns(at: Address, guest: string, security?: Security): Promise<Ownership> {
  const control = await ControlChannel.connect(at, AbortSignal.timeout(CONNECT_TIMEOUT_MS), security);
  try {
    const late = (): MigrationError => new MigrationError("ERR_PEER_DEAD", `${formatAddress(at)} did not answer who owns ${guest}`);
    const answered = control.expect(["ownership"], CONNECT_TIMEOUT_MS, late);
    control.send({ type: "who-owns", guest });
    const { standing, epoch, at: since, peer } = await answered;
    return { guest, standing, epoch, at: since, peer };
  } finally {
    control.close(new MigrationError("ERR_LINK_LOST", "The question was answered"));
  }
}
