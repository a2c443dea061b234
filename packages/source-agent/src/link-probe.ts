import { setTimeout as sleep } from "node:timers/promises";
import type { RoundTransfer } from "@precopy/engine";
import { Bitmap } from "@precopy/guest";
import { MigrationError, PAGE_BYTES, STRIPE_PAGES } from "@precopy/protocol";
import type { LinkSurvey } from "@precopy/protocol";
import { ControlChannel, checkCongestionControl, choosePump } from "@precopy/transport";
import { ControlLink } from "./control-link.js";
import { addStripes, draw, stripesWith } from "./stripe-sample.js";
import { beAdmitted, makePageLink } from "./transfer.js";
import type { Transfer } from "./transfer.js";

/** For so long the link is sent pages over. */
const PROBE_MS = 1000;
const FIRST_STRIPES = 1;
/** Rounds of one page each, which tell what a round takes beside its transfer. */
const EMPTY_ROUNDS = 9;
const WARM_UP_MS = 150;
/** A stretch shorter than this says little of the link. */
const STRETCH_MS = 20;
/** Of an empty guest, bytes/s: it makes no difference. */
const NOTHING_TO_SEND = 1e9;
/** The target lets go of what it was sent, and admits the next one then. */
const LET_GO_MS = 2000;

/** What a second of real streams showed. */
export interface ProbedLink {
  readonly survey: LinkSurvey;
  /** For each page with data, headers included. */
  readonly wireBytesPerPage: number;
  /** The target's own measure of how fast its vCPUs start. */
  readonly resumeMs: number;
}

/**
 * Sends real pages of the guest to the target for a second, each once, in rounds as a migration does, and takes it back: to the target it is a
 * migration that was cancelled in its first round. Nothing is written down, and the guest does not notice.
 * @param populated what the first round would look at. @param zeroPageMs what a page of zeros takes to be looked at.
 * @throws {MigrationError} the target's refusal, or what a migration would fail with.
 */
export async function probeLink(transfer: Transfer, populated: Bitmap, zeroPageMs: number, signal: AbortSignal): Promise<ProbedLink> {
  const { guest, to, attempt, parameters, options } = transfer;
  const pump = choosePump(parameters.pump, options.security);
  checkCongestionControl(parameters.congestionControl);
  const started = performance.now();
  const control = new ControlLink(await ControlChannel.connect(to, signal, options.security), to, attempt, options.security);
  let failure: MigrationError | undefined;
  const over = new MigrationError("ERR_CANCELLED", "It was a probe of the link, and is over");
  try {
    const admitted = await beAdmitted(control, transfer);
    const link = makePageLink(control, transfer, pump, parameters.isDigestOn ? guest.freshHashTable() : undefined, admitted, {
      fail: (error) => {
        failure ??= error;
        void link.stop(error);
      },
      onEvent: () => {}, // what breaks is mended, or fails
      onMessage: () => {},
    });
    control.onDead = (reason) => {
      failure ??= reason;
      void link.stop(reason);
    };
    signal.addEventListener("abort", () => void link.stop(MigrationError.from(signal.reason)), { once: true });
    try {
      await link.open();
      const setupMs = performance.now() - started;
      const sent = await sendForAWhile(link, populated);
      return {
        survey: { "setup-ms": setupMs, ...summary(sent, link.roundTripMs(), zeroPageMs, parameters.multifdChannels) },
        wireBytesPerPage: wireBytesPerPage(sent.rounds),
        resumeMs: admitted.probeMs,
      };
    } finally {
      await link.stop(over);
    }
  } catch (error) {
    throw failure ?? MigrationError.from(error);
  } finally {
    control.send({ type: "abort", code: over.code, message: over.message });
    for (let left = LET_GO_MS; left > 0 && control.channel.closed === undefined; left -= 10) await sleep(10);
    control.close(over);
  }
}

interface Sent {
  readonly rounds: readonly RoundTransfer[];
  /** Rounds of one page. */
  readonly small: readonly RoundTransfer[];
}

/** Rounds twice as long as the one before, until the time is up or every page was sent once; then some of one page. */
async function sendForAWhile(link: { sendRound(round: number, pages: Bitmap): Promise<RoundTransfer> }, populated: Bitmap): Promise<Sent> {
  const stripes = stripesWith(populated);
  const order = draw(stripes, stripes.length);
  const rounds: RoundTransfer[] = [];
  const pages = new Bitmap(populated.pages);
  const started = performance.now();
  let round = 1;
  for (let at = 0, count = FIRST_STRIPES; at < order.length; ) {
    const elapsedMs = performance.now() - started;
    if (elapsedMs >= PROBE_MS) break;
    const last = rounds.at(-1);
    // No longer than what is left of the time, at the speed of the last one.
    const stripesAMs = last === undefined ? Number.POSITIVE_INFINITY : count / 2 / last.ms;
    const next = order.slice(at, at + Math.max(1, Math.min(count, Math.ceil((PROBE_MS - elapsedMs) * stripesAMs))));
    pages.clear();
    addStripes(pages, next);
    pages.intersect(populated);
    rounds.push(await link.sendRound(round++, pages));
    at += next.length;
    count *= 2;
  }
  const small: RoundTransfer[] = [];
  const [first] = order;
  for (let left = EMPTY_ROUNDS; left > 0 && first !== undefined; left--) {
    pages.clear();
    pages.setRun(first * STRIPE_PAGES, 1);
    small.push(await link.sendRound(round++, pages));
  }
  return { rounds, small };
}

function summary({ rounds, small }: Sent, roundTripMs: number, zeroPageMs: number, channels: number): Omit<LinkSurvey, "setup-ms"> {
  const median = small.map(({ ms }) => ms).toSorted((one, other) => one - other)[Math.floor(small.length / 2)] ?? roundTripMs;
  const rateOf = (some: readonly RoundTransfer[]): number => {
    const bytes = some.reduce((sum, one) => sum + one.bytes, 0);
    const ms = some.reduce((sum, one) => sum + Math.max(one.ms - median - (one.zeroPages * zeroPageMs) / channels, one.ms / 10, 0.01), 0);
    return (bytes / ms) * 1000;
  };
  // The first rounds are the connections' slow start.
  let warmMs = 0;
  const warm = rounds.filter(({ ms }) => (warmMs += ms) - ms >= WARM_UP_MS);
  const long = (warm.length > 0 ? warm : rounds).filter(({ ms }) => ms >= STRETCH_MS);
  const counted = long.length > 0 ? long : rounds.slice(-1);
  const bytesPerSecond = counted.length === 0 ? NOTHING_TO_SEND : rateOf(counted);
  const off = counted.map((one) => Math.abs(rateOf([one]) / bytesPerSecond - 1));
  return {
    "bandwidth-bytes-per-second": bytesPerSecond,
    spread: Math.min(Math.max(0.02, ...off), 0.9),
    "round-trip-ms": roundTripMs,
    "probe-ms": rounds.reduce((sum, { ms }) => sum + ms, 0),
    "probed-bytes": rounds.reduce((sum, { bytes }) => sum + bytes, 0),
    "round-ms": Math.max(0, median - roundTripMs / 2),
  };
}

function wireBytesPerPage(rounds: readonly RoundTransfer[]): number {
  const normalPages = rounds.reduce((sum, one) => sum + one.normalPages, 0);
  return normalPages === 0 ? PAGE_BYTES : rounds.reduce((sum, { bytes }) => sum + bytes, 0) / normalPages;
}
