import { downtimeParts } from "@precopy/engine";
import type { SwitchResult } from "@precopy/engine";
import type { Guest } from "@precopy/guest";
import { MigrationError, PAGE_BYTES, addXbzrle, formatAddress, qemuStatus, reportParameters } from "@precopy/protocol";
import type {
  Address,
  DowntimeParts,
  Forecast,
  ForecastRange,
  MigrationReport,
  PostcopyReport,
  QueryMigrate,
  RoundProgress,
} from "@precopy/protocol";
import type { OutgoingMigration } from "./outgoing-migration.js";

const round2 = (value: number): number => Math.round(value * 100) / 100;
const sum = (rounds: readonly RoundProgress[], of: (round: RoundProgress) => number): number =>
  rounds.reduce((all, round) => all + of(round), 0);

type Read =
  | "to"
  | "epoch"
  | "phase"
  | "parameters"
  | "acceptedAtMs"
  | "rounds"
  | "guestGapMs"
  | "hostGapMs"
  | "audit"
  | "postcopy"
  | "isImageEqual"
  | "serving"
  | "afterwards"
  | "congestionControl"
  | "forecasts"
  | "channelLosses"
  | "controlRejoins"
  | "resentPages";
/** What a report reads of a migration. */
export type ReportedMigration = Pick<OutgoingMigration, Read> & { readonly guest: Pick<Guest, "manifest" | "epoch" | "dirtyLog"> };

/** `query-migrate` as QEMU answers it: while it runs, and at the end with `result`. Absent keys are absent there, too. */
export function queryMigrate(
  migration: ReportedMigration,
  result: SwitchResult | undefined,
  error: MigrationError | undefined,
): QueryMigrate {
  const { rounds, guest } = migration;
  const last = rounds.at(-1);
  const transferred = sum(rounds, ({ bytes }) => bytes);
  const normal = sum(rounds, ({ normalPages }) => normalPages);
  const elapsedMs = result?.totalMs ?? performance.now() - migration.acceptedAtMs;
  const expected = last?.expectedDowntimeMs;
  const downtimeBytes = result?.downtimeBytes ?? 0;
  const { postcopy, serving } = migration;
  const pushedBytes = postcopy?.pushedBytes ?? serving?.pushedBytes ?? 0;
  const requests = postcopy?.faults.requests ?? serving?.requests ?? 0;
  const postcopyBytes = pushedBytes + requests * PAGE_BYTES;
  return {
    status: statusOf(migration),
    "total-time": round2(elapsedMs),
    ...(result === undefined ? {} : { downtime: round2(result.downtimeMs), "setup-time": round2(result.setupMs) }),
    ...(result === undefined && error === undefined && expected !== undefined ? { "expected-downtime": round2(expected) } : {}),
    ...(last === undefined || last.throttlePercent < 0.5 ? {} : { "cpu-throttle-percentage": Math.round(last.throttlePercent) }),
    ...(error === undefined ? {} : { "error-desc": error.message }),
    ...(migration.parameters.isXbzrleOn ? { "xbzrle-cache": xbzrleCache(migration) } : {}),
    ram: {
      transferred: transferred + postcopyBytes,
      remaining: (postcopy === null ? (serving?.remainingPages ?? last?.remainingPages ?? 0) : 0) * PAGE_BYTES,
      total: guest.manifest.memoryBytes,
      duplicate: sum(rounds, ({ zeroPages }) => zeroPages),
      normal,
      "normal-bytes": normal * PAGE_BYTES,
      "dirty-pages-rate": Math.round(
        rounds.findLast(({ dirtyPagesPerSecond }) => dirtyPagesPerSecond !== undefined)?.dirtyPagesPerSecond ?? 0,
      ),
      mbps: round2((transferred * 8) / Math.max(elapsedMs, 0.001) / 1000),
      "dirty-sync-count": rounds.length,
      "page-size": PAGE_BYTES,
      "multifd-bytes": transferred,
      "precopy-bytes": transferred - downtimeBytes,
      "downtime-bytes": downtimeBytes,
      "pages-per-second": Math.round((normal / Math.max(elapsedMs, 0.001)) * 1000),
      "postcopy-requests": requests,
      "postcopy-bytes": postcopyBytes,
    },
    ...(postcopy === null
      ? {}
      : {
          "postcopy-vcpu-blocktime": postcopy.faults.vcpuBlockedMs.map(round2),
          "postcopy-latency": round2(postcopy.faults.medianUs),
          "postcopy-latency-dist": postcopy.faults.distribution,
        }),
  };
}

function statusOf({ phase, rounds, serving }: ReportedMigration): string {
  if (phase === "active" && rounds.at(-1)?.isReady === true) return "pre-switchover";
  return phase === "postcopy-paused" && serving?.isRecovering === true ? "postcopy-recover" : qemuStatus(phase);
}

function xbzrleCache({ rounds, parameters }: ReportedMigration): NonNullable<QueryMigrate["xbzrle-cache"]> {
  const { pages, bytes, misses, overflows } =
    rounds.map(({ xbzrle }) => xbzrle).reduce(addXbzrle, undefined) ?? addXbzrle(undefined, undefined);
  return {
    "cache-size": parameters.xbzrleCacheBytes,
    bytes,
    pages,
    "cache-miss": misses,
    "cache-miss-rate": round2(misses / Math.max(pages + misses + overflows, 1)),
    "encoding-rate": bytes === 0 ? 0 : round2((pages * PAGE_BYTES) / bytes),
    overflow: overflows,
  };
}

const iteration = (round: RoundProgress): Record<string, unknown> => ({
  round: round.round,
  "start-ms": round2(round.startMs),
  "duration-ms": round2(round.durationMs),
  "collect-ms": round2(round.collectMs),
  "dirty-pages": round.dirtyPages,
  "normal-pages": round.normalPages,
  "zero-pages": round.zeroPages,
  bytes: round.bytes,
  "bandwidth-bytes-per-second": round.bandwidthBytesPerSecond === undefined ? null : Math.round(round.bandwidthBytesPerSecond),
  "dirty-pages-per-second": round.dirtyPagesPerSecond === undefined ? null : Math.round(round.dirtyPagesPerSecond),
  "throttle-percent": round2(round.throttlePercent),
  "expected-downtime-ms": round.expectedDowntimeMs === undefined ? null : round2(round.expectedDowntimeMs),
  decision: round.decision,
});

const roundedParts = ({ pause, collect, send, commit }: DowntimeParts): DowntimeParts => ({
  pause: round2(pause),
  collect: round2(collect),
  send: round2(send),
  commit: round2(commit),
});
const roundedRange = ({ low, expected, high }: ForecastRange): ForecastRange => ({
  low: round2(low),
  expected: round2(expected),
  high: round2(high),
});
const rounded = (forecast: Forecast): Forecast => ({
  ...forecast,
  "total-ms": roundedRange(forecast["total-ms"]),
  "downtime-ms": roundedRange(forecast["downtime-ms"]),
  "downtime-parts": roundedParts(forecast["downtime-parts"]),
  bytes: roundedRange(forecast.bytes),
  "lost-percent": round2(forecast["lost-percent"]),
  "blocked-ms": roundedRange(forecast["blocked-ms"]),
});

/** What is kept of a migration, however it ended. */
export function migrationReport(
  from: Address,
  migration: ReportedMigration,
  result: SwitchResult | undefined,
  error: MigrationError | undefined,
): MigrationReport {
  const { parameters, audit } = migration;
  const isProven = parameters.isDigestOn && parameters.isAuditOn && result !== undefined;
  const isEqual = isProven ? audit !== null && audit.mismatched === 0 : null;
  const breakdown = result?.breakdown;
  return {
    guest: migration.guest.manifest.id,
    from: formatAddress(from),
    to: formatAddress(migration.to),
    "owner-epoch": result === undefined ? migration.guest.epoch : migration.epoch,
    "query-migrate": queryMigrate(migration, result, error),
    iterations: migration.rounds.map(iteration),
    "downtime-breakdown":
      breakdown === undefined
        ? null
        : {
            pause: round2(breakdown.pause),
            collect: round2(breakdown.collect),
            transfer: round2(breakdown.transfer),
            prepare: round2(breakdown.prepare),
            commit: round2(breakdown.commit),
          },
    forecasts: migration.forecasts.map(rounded),
    outcome:
      result === undefined || breakdown === undefined
        ? null
        : {
            "total-ms": round2(result.totalMs),
            "downtime-ms": round2(result.downtimeMs),
            "downtime-parts": roundedParts(downtimeParts(breakdown)),
            bytes: sum(migration.rounds, ({ bytes }) => bytes),
          },
    clocks: {
      "source-ms": result === undefined ? null : round2(result.downtimeMs),
      "host-ms": migration.hostGapMs === null ? null : round2(migration.hostGapMs),
      "guest-ms": migration.guestGapMs === null ? null : round2(migration.guestGapMs),
      "client-ms": null,
    },
    "digest-equal": migration.postcopy === null ? isEqual : migration.isImageEqual,
    audit: audit === null ? null : { ...audit, ms: round2(audit.ms) },
    postcopy: postcopyReport(migration),
    verdict: verdict(migration, result, error),
    "channel-losses": migration.channelLosses,
    "control-rejoins": migration.controlRejoins,
    "resent-pages": migration.resentPages,
    "resent-bytes": migration.resentPages * PAGE_BYTES,
    parameters: {
      ...reportParameters(parameters),
      "dirty-log": migration.guest.dirtyLog,
      "congestion-control": migration.congestionControl,
    },
    error: error === undefined ? null : { code: error.code, message: error.message, remedy: error.remedy },
  };
}

function postcopyReport({ postcopy }: ReportedMigration): PostcopyReport | null {
  if (postcopy === null) return null;
  const { requests, zeros, medianUs, p99Us, maxUs, distribution, vcpuBlockedMs } = postcopy.faults;
  return {
    requests,
    "zero-faults": zeros,
    "latency-us": { median: round2(medianUs), p99: round2(p99Us), max: round2(maxUs) },
    "latency-dist": distribution,
    "vcpu-blocktime-ms": vcpuBlockedMs.map(round2),
    "pushed-pages": postcopy.pushedPages,
    "pushed-bytes": postcopy.pushedBytes,
    pauses: postcopy.pauses,
    "fetch-ms": round2(postcopy.fetchMs),
  };
}

function verdict(
  { rounds, audit, parameters, afterwards, postcopy, isImageEqual }: ReportedMigration,
  result: SwitchResult | undefined,
  error: MigrationError | undefined,
): string {
  const more = afterwards === undefined ? "" : `; the clean-up failed: ${afterwards.message}`;
  if (error !== undefined) return `${error.code}: ${error.message}${more}`;
  if (result === undefined) return "in progress";
  if (audit !== null && audit.mismatched > 0)
    return `the dirty log lost ${audit.mismatched} of ${audit.pages} pages: do not trust the moved guest`;
  if (isImageEqual === false) return "what was placed at the target is not what stands here: do not trust the moved guest";
  const parts = Object.entries(result.breakdown).sort(([, one], [, other]) => other - one);
  const largest = parts[0] === undefined ? "" : `, most of it ${parts[0][0]} (${parts[0][1].toFixed(1)} ms)`;
  const pause = `paused ${result.downtimeMs.toFixed(1)} ms${largest}`;
  if (postcopy !== null)
    return `post-copy after ${rounds.length - 1} rounds; ${pause}; then the guest waited for ${postcopy.faults.requests} of ${postcopy.faults.requests + postcopy.pushedPages} pages, ${Math.max(0, ...postcopy.faults.vcpuBlockedMs).toFixed(0)} ms in all${more}`;
  return `${parameters.mode !== "stop-and-copy" ? `converged in ${rounds.length} rounds` : "stopped and copied"}; ${pause}${more}`;
}
