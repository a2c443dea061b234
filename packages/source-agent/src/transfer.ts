import { endianness } from "node:os";
import type { Guest, HashTable } from "@precopy/guest";
import {
  ADMISSION_TIMEOUT_MS,
  BLOCK_COMPRESSIONS,
  MigrationError,
  PAGE_BYTES,
  PROTOCOL_VERSION,
  formatAddress,
  mayPostcopy,
} from "@precopy/protocol";
import type { Address, ControlMessage, MigrationParameters } from "@precopy/protocol";
import { codecOfNode, hasCodec } from "@precopy/protocol/page-codec";
import { ChannelKey } from "@precopy/security";
import { LaneTable, PageChannel, connectPageChannel } from "@precopy/transport";
import type { ChannelAccess, PumpKind } from "@precopy/transport";
import type { Attempt, ControlLink } from "./control-link.js";
import type { SourceAgentOptions } from "./outgoing-migration.js";
import { PageLink } from "./page-link.js";
import type { LinkEvent } from "./page-link.js";

/** Whose pages go where, and how: what a migration and a probe of the link have in common. */
export interface Transfer {
  readonly guest: Guest;
  readonly to: Address;
  readonly attempt: Attempt;
  readonly parameters: MigrationParameters;
  readonly options: SourceAgentOptions;
}

export interface TransferEvents {
  /** The link cannot be mended. */
  fail(error: MigrationError): void;
  onEvent(event: LinkEvent): void;
  /** Of the control channel, and not about pages. */
  onMessage(message: ControlMessage): void;
}

export const silence = (what: string) => (): MigrationError => new MigrationError("ERR_PEER_DEAD", `The target did not answer ${what}`);

/** What the target said when it admitted the guest. */
export interface Admitted {
  /** Its own measure of how fast its vCPUs start, ms. */
  readonly probeMs: number;
  /** All that it has. */
  readonly capabilities: readonly string[];
  /** For a ChannelKey. */
  readonly channelSecret: Uint8Array;
}

/** How channels of an admission get into the target. */
export function channelAccess({ channelSecret }: Admitted, { security, threads }: SourceAgentOptions): ChannelAccess {
  return { key: new ChannelKey(security?.token?.channelSecret(channelSecret) ?? channelSecret), security, threads };
}

/** Asks the target to take the guest. @throws {MigrationError} the target's refusal, ERR_PEER_DEAD, ERR_CAPABILITY if something is wanted that this side has not */
export async function beAdmitted(control: ControlLink, { guest, attempt, parameters, options }: Transfer): Promise<Admitted> {
  const { arbiter, address, release } = options;
  const here = address?.();
  if (parameters.multifdCompression === "zstd") codecOfNode("zstd");
  const { multifdCompression: compression } = parameters;
  const wanted = {
    lz4: compression === "lz4" || compression === "auto",
    zstd: compression === "zstd",
    xbzrle: parameters.isXbzrleOn,
    digest: parameters.isDigestOn,
  };
  const capabilities = Object.entries(wanted).flatMap(([name, isWanted]) => (isWanted ? [name] : []));
  const answered = control.expect(["admitted"], ADMISSION_TIMEOUT_MS, silence("the admission"));
  control.send({
    type: "admit",
    protocolVersion: PROTOCOL_VERSION,
    release,
    session: attempt.session,
    epoch: attempt.epoch,
    pageBytes: PAGE_BYTES,
    endianness: endianness(),
    channels: parameters.multifdChannels,
    capabilities,
    digest: parameters.isDigestOn,
    manifest: guest.manifest,
    from: here === undefined ? null : formatAddress(here),
    arbiterEpoch: arbiter === undefined ? null : guest.epoch,
    postcopy: mayPostcopy(parameters),
  });
  return answered;
}

/** The page channels to a target that has admitted the guest, on lanes of their own; nothing of it is open yet. */
export function makePageLink(
  control: ControlLink,
  { guest, to, attempt, parameters, options }: Transfer,
  pump: PumpKind,
  hashes: HashTable | undefined,
  admitted: Admitted,
  events: TransferEvents,
): PageLink {
  const { session } = attempt;
  const { capabilities } = admitted;
  const lanes = LaneTable.allocate(parameters.multifdChannels);
  const link = new PageLink(lanes, parameters.maxBandwidthBytesPerSecond, {
    open: async (channel, generation, signal) => {
      const { socket, stored } = await connectPageChannel(to, { session, channel, generation }, signal, channelAccess(admitted, options));
      const opened = await PageChannel.open(socket, options.threads, {
        type: "send",
        pump,
        channel,
        generation,
        lanes: lanes.share(),
        memory: guest.memory.share(),
        hashes,
        compression: parameters.multifdCompression,
        choices: BLOCK_COMPRESSIONS.filter((name) => hasCodec(name) && capabilities.includes(name)),
        xbzrleCacheBytes: parameters.isXbzrleOn ? Math.floor(parameters.xbzrleCacheBytes / parameters.multifdChannels) : 0,
        congestionControl: parameters.congestionControl,
        zeroCheck: options.zeroCheck ?? "vector",
      });
      return { channel: opened, stored };
    },
    carry: async (lane, channel) => {
      const carried = control.expect(["carried"], ADMISSION_TIMEOUT_MS, silence("a channel's request to carry more"));
      control.send({ type: "carry", lane, channel });
      return { lane, ...(await carried).stored };
    },
    ready: () => control.ready(),
    ping: () => control.channel.ping(),
    roundTripMs: () => control.channel.rttMs ?? 0,
    fail: (error) => events.fail(error),
    onEvent: (event) => events.onEvent(event),
  });
  control.onMessage = (message) => {
    if (message.type === "flushed") link.onFlushed(message);
    else if (message.type === "lost") link.onLost(message);
    else events.onMessage(message);
  };
  control.onLost = ({ code, message }) => events.onEvent({ what: "control-lost", channel: null, code, message });
  control.onRejoined = ({ flushed, lost }, wasSilent) => {
    events.onEvent({ what: "control-rejoined", channel: null, code: null, message: "" });
    for (const one of flushed) link.onFlushed(one);
    for (const one of lost) link.onLost({ ...one, code: "ERR_LINK_LOST", message: "It ended at the target" });
    if (wasSilent) link.suspectAll(new MigrationError("ERR_PEER_DEAD", "Nothing was heard from the target for long"));
  };
  return link;
}
