import { PAGE_BYTES } from "@precopy/protocol";
import type {
  DowntimeBreakdown,
  DowntimeParts,
  Forecast,
  ForecastRange,
  ForecastSource,
  MigrationParameters,
  PlannedChange,
} from "@precopy/protocol";
import { simulate } from "./simulator.js";
import type { ModelCosts, ModelGuest, ModelLink, Simulated } from "./simulator.js";
import { faster } from "./writer-models.js";

/** What was measured of a guest, of a link, and of both hosts. */
export interface Measured {
  readonly guest: ModelGuest;
  readonly link: ModelLink;
  readonly costs: ModelCosts;
  /** How far off either may be, as a share of it, 0 to below 1. */
  readonly linkSpread: number;
  readonly dirtySpread: number;
}

/** What LZ4 made of a sample of the guest's pages. */
export interface Compressibility {
  /** Of what it was, 0 to 1 and a little more. */
  readonly ratio: number;
  /** Of pages, by one thread. */
  readonly bytesPerSecond: number;
}

const NOTHING: ForecastRange = { low: 0, expected: 0, high: 0 };

/** As reports tell them: where a page counts as sent when the system has taken it and where when it has arrived is nobody's business. */
export const downtimeParts = ({ pause, collect, transfer, prepare, commit }: DowntimeBreakdown): DowntimeParts => ({
  pause,
  collect,
  send: transfer + prepare,
  commit,
});

/** The real round loop and policy, run against what was measured: once as it was, once a little better and once a little worse. */
export async function forecast(by: ForecastSource, measured: Measured, parameters: MigrationParameters): Promise<Forecast> {
  const { guest, link, costs, linkSpread, dirtySpread } = measured;
  const run = (linkFactor: number, dirtyFactor: number): Promise<Simulated> =>
    simulate(
      { ...guest, vcpus: guest.vcpus.map((vcpu) => faster(vcpu, dirtyFactor)) },
      { ...link, bytesPerSecond: link.bytesPerSecond * linkFactor },
      { ...parameters, isHoldBackOn: false }, // which pages are hot a model does not know
      costs,
    );
  const [expected, better, worse] = [
    await run(1, 1),
    await run(1 + linkSpread, 1 - dirtySpread),
    await run(1 - linkSpread, 1 + dirtySpread),
  ];
  const ended = [expected, better, worse].filter(({ failure }) => failure === undefined);
  const range = (of: (simulated: Simulated) => number): ForecastRange => ({
    low: Math.min(...ended.map(of)),
    expected: of(expected),
    high: Math.max(...ended.map(of)),
  });
  const ends = expected.failure === undefined;
  return {
    by,
    ends,
    failure: expected.failure?.message ?? "",
    "total-ms": ends ? range(({ totalMs }) => totalMs) : NOTHING,
    "downtime-ms": ends ? range(({ downtimeMs }) => downtimeMs) : NOTHING,
    "downtime-parts": expected.breakdown === undefined ? { pause: 0, collect: 0, send: 0, commit: 0 } : downtimeParts(expected.breakdown),
    bytes: ends ? range(({ bytes }) => bytes) : NOTHING,
    rounds: expected.rounds.length,
    "lost-percent": expected.lostShare * 100,
    "blocked-ms": ends ? range(({ fetched }) => fetched?.blockedMs ?? 0) : NOTHING,
  };
}

/** LZ4 is worth a try where it leaves less than this. */
const WORTH_RATIO = 0.8;
/** A longer pause is a cheap change if it is at most so many times what is allowed now. */
const LIMIT_FACTOR = 2;

/**
 * What makes a migration end within its limits that does not as things are, cheapest first: compression takes processor time, a longer pause
 * and throttling take the guest's, post-copy needs both hosts for longer, and stopping it first takes all of it.
 */
export async function changesThatHelp(
  measured: Measured,
  parameters: MigrationParameters,
  lz4: Compressibility | undefined,
  cpus: number,
): Promise<PlannedChange[]> {
  const changes: PlannedChange[] = [];
  const attempt = async (option: string, given: Partial<MigrationParameters>, price: (forecast: Forecast) => string, model = measured) => {
    const result = await forecast("plan", model, { ...parameters, ...given });
    if (result.ends) changes.push({ option, price: price(result), forecast: result });
  };
  if (parameters.multifdCompression === "none" && lz4 !== undefined && lz4.ratio < WORTH_RATIO)
    await attempt(
      "--multifd-compression lz4",
      { multifdCompression: "lz4" },
      () => "processor time",
      compressed(measured, parameters, lz4, cpus),
    );
  const pause = Math.ceil((await bestPause(measured, parameters)) * 1.05);
  const longer = (): Promise<void> =>
    attempt(`--downtime-limit ${pause}`, { downtimeLimitMs: pause }, (made) => `a pause of ${made["downtime-ms"].expected.toFixed(0)} ms`);
  if (Number.isFinite(pause) && pause <= LIMIT_FACTOR * parameters.downtimeLimitMs) await longer();
  if (parameters.throttle !== "sdps")
    await attempt("--throttle sdps", { throttle: "sdps" }, (made) => `${made["lost-percent"].toFixed(0)} % of the guest's time meanwhile`);
  if (Number.isFinite(pause) && pause > LIMIT_FACTOR * parameters.downtimeLimitMs) await longer();
  if (parameters.mode === "precopy" && !parameters.isXbzrleOn)
    await attempt(
      "--mode hybrid",
      { mode: "hybrid" },
      (made) =>
        `${made["blocked-ms"].expected.toFixed(0)} ms of the guest's time at pages that are still to come, and both hosts until they have`,
    );
  await attempt("--mode stop-and-copy", { mode: "stop-and-copy" }, (made) => `a pause of ${made["downtime-ms"].expected.toFixed(0)} ms`);
  return changes;
}

/** The shortest pause that any round would have led to; Infinity if there was none. */
async function bestPause({ guest, link, costs }: Measured, parameters: MigrationParameters): Promise<number> {
  const { rounds } = await simulate(guest, link, { ...parameters, isHoldBackOn: false }, costs);
  return Math.min(...rounds.map(({ expectedDowntimeMs }) => expectedDowntimeMs ?? Number.POSITIVE_INFINITY));
}

/** As many threads compress as there are channels and processors. */
function compressed(
  measured: Measured,
  { multifdChannels }: MigrationParameters,
  { ratio, bytesPerSecond }: Compressibility,
  cpus: number,
): Measured {
  const packed = bytesPerSecond * Math.min(multifdChannels, cpus) * ratio; // on the wire
  const { link, costs } = measured;
  return {
    ...measured,
    link: { ...link, bytesPerSecond: Math.min(link.bytesPerSecond, packed) },
    costs: { ...costs, wireBytesPerPage: costs.wireBytesPerPage - PAGE_BYTES * (1 - ratio) },
  };
}
