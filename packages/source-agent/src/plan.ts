import { availableParallelism } from "node:os";
import { TYPICAL_COSTS, changesThatHelp, forecast, watchedWriter } from "@precopy/engine";
import type { Measured, ModelCosts } from "@precopy/engine";
import { Bitmap } from "@precopy/guest";
import { formatAddress, reportParameters } from "@precopy/protocol";
import type { DirtyRate, DowntimeParts, MigrationPlanReport } from "@precopy/protocol";
import { sampleDirtyRate } from "./dirty-rate.js";
import { probeLink } from "./link-probe.js";
import type { ProbedLink } from "./link-probe.js";
import { surveyPages } from "./page-survey.js";
import type { Transfer } from "./transfer.js";

/** What a hand-over takes apart from sending pages, ms. */
export type HandoverCosts = Pick<DowntimeParts, "send" | "commit">;

/**
 * Where nothing was handed over yet: the last pages are acknowledged as a round is and PREPARED is told, then COMMIT and ACTIVE go once to and fro, and
 * the vCPUs start. @param roundMs of a round without pages, acknowledgement and hand-offs between threads included.
 */
export const likelyCosts = (roundMs: number, resumeMs: number): HandoverCosts => ({ send: 2 * roundMs, commit: roundMs + resumeMs });

/**
 * Says what a migration would come to, by measuring guest and link and running the real policy against what was found: how the guest writes
 * (3 s), what its pages hold, and what the link carries (1 s of real streams). The guest runs on, and loses about one percent of its time.
 * @param handover what earlier hand-overs to this target took, if there were any. @throws {MigrationError} what a migration would be refused with; ERR_CANCELLED
 */
export async function planMigration(
  transfer: Transfer,
  handover: HandoverCosts | undefined,
  signal: AbortSignal,
): Promise<MigrationPlanReport> {
  const { guest, to, parameters, options } = transfer;
  const { memory } = options.guests;
  const populated = new Bitmap(guest.memory.pages);
  const dirtyRate = await sampleDirtyRate(guest, memory, populated, signal);
  signal.throwIfAborted();
  const { survey, zeroPageMs } = surveyPages(guest.memory, populated);
  const link = await probeLink(transfer, populated, zeroPageMs, signal);
  const measured = measure(
    transfer,
    dirtyRate,
    survey["zero-share"],
    zeroPageMs,
    link,
    handover ?? likelyCosts(link.survey["round-ms"] + link.survey["round-trip-ms"] / 2, link.resumeMs),
  );
  const expected = await forecast("plan", measured, parameters);
  const lz4 =
    survey["lz4-ratio"] === null || survey["lz4-bytes-per-second"] === null
      ? undefined
      : { ratio: survey["lz4-ratio"], bytesPerSecond: survey["lz4-bytes-per-second"] };
  return {
    guest: guest.manifest.id,
    to: formatAddress(to),
    at: new Date().toISOString(),
    "dirty-rate": dirtyRate,
    pages: survey,
    link: link.survey,
    forecast: expected,
    changes: expected.ends ? [] : await changesThatHelp(measured, parameters, lz4, availableParallelism()),
    parameters: reportParameters(parameters),
  };
}

function measure(
  { guest, parameters }: Transfer,
  dirtyRate: DirtyRate,
  zeroShare: number,
  zeroPageMs: number,
  { survey, wireBytesPerPage, resumeMs }: ProbedLink,
  handover: HandoverCosts,
): Measured {
  const { curve } = dirtyRate;
  const populated = dirtyRate["populated-pages"];
  const zeroPages = Math.round(populated * zeroShare);
  const last = curve.at(-1);
  const costs: ModelCosts = {
    setupMs: survey["setup-ms"],
    listMs: dirtyRate["list-ms"],
    zeroPageMs: zeroPageMs / parameters.multifdChannels,
    pauseMs: guest.probeMs(),
    resumeMs,
    collectMs: dirtyRate["list-ms"],
    roundMs: survey["round-ms"],
    prepareMs: Math.max(0, handover.send - survey["round-ms"]),
    commitMs: Math.max(0, handover.commit - resumeMs),
    faultMs: TYPICAL_COSTS.faultMs,
    wireBytesPerPage,
  };
  return {
    guest: {
      pages: guest.memory.pages,
      populatedPages: populated - zeroPages,
      zeroPages,
      vcpus: [watchedWriter(curve, Math.max(1, populated - zeroPages))],
    },
    link: { bytesPerSecond: survey["bandwidth-bytes-per-second"], roundTripMs: survey["round-trip-ms"] },
    costs,
    linkSpread: survey.spread,
    dirtySpread: last === undefined || last.pages === 0 ? 0 : Math.min(last["error-pages"] / last.pages, 0.9),
  };
}
