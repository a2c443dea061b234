import { PAGE_BYTES } from "@precopy/protocol";
import type { MigrationParameters } from "@precopy/protocol";
import { DirtyDemand } from "./dirty-demand.js";
import type { Clock, GuestPort, LinkPort, Timer } from "./ports.js";
import { SdpsBudget, dealOut, shareFor } from "./throttle.js";

/** How often the controllers look at the guest while a round is sent. */
const LOOK_MS = 100;
/** A stretch of a round tells what the link carries if it lasted this long. */
const STRETCH_MS = 500;

export interface ThrottlingPorts {
  readonly guest: Pick<GuestPort, "withhold" | "activity">;
  readonly link: Pick<LinkPort, "sentPages">;
  readonly clock: Clock;
  readonly every: Timer;
}

/**
 * Withholds guest run time as the parameters say, which may change at any moment: auto-converge by the percentage that the policy asked for after
 * a round, sdps and dirty-limit as controllers that look at each vCPU ten times a second. Whatever is withheld stays so until `lift`.
 */
export class Throttling {
  readonly #ports: ThrottlingPorts;
  readonly #parameters: () => MigrationParameters;
  readonly #demand = new DirtyDemand();
  readonly #budget = new SdpsBudget();
  readonly #stopLooking: () => void;
  #shares: readonly number[] = [];
  /** auto-converge: what the policy asked for. */
  #wantedPercent = 0;
  /** What finished rounds teach; 0 before. */
  #knownPagesPerSecond = 0;
  /** The fastest stretch of sending, while no round has finished. */
  #fastestPagesPerSecond = 0;
  #stretch: { readonly atMs: number; readonly sentPages: number };
  /** When `takePercent` was called last. */
  #takenAtMs: number;
  /** The mean vCPU's withheld time then; undefined while nothing was ever withheld, and nobody has to be asked. */
  #takenMs: number | undefined;

  constructor(ports: ThrottlingPorts, parameters: () => MigrationParameters) {
    this.#ports = ports;
    this.#parameters = parameters;
    const now = ports.clock();
    this.#takenAtMs = now;
    this.#stretch = { atMs: now, sentPages: ports.link.sentPages() };
    if (parameters().throttle !== "none") this.#demand.look(ports.guest.activity(), now);
    this.#stopLooking = ports.every(LOOK_MS, () => this.#look());
  }

  /** A round has been acknowledged and the next pages are collected. @param sendPagesPerSecond what rounds so far say of the link; Infinity for nothing. */
  collected(pages: number, sendPagesPerSecond: number): void {
    this.#knownPagesPerSecond = Number.isFinite(sendPagesPerSecond) ? sendPagesPerSecond : 0;
    if (this.#parameters().throttle === "none") return;
    this.#look();
    this.#demand.collected(pages);
  }

  /** auto-converge's next step. */
  converge(percent: number): void {
    this.#wantedPercent = percent;
    this.#look();
  }

  /** What was withheld since the last call, percent of the vCPUs' time; as they measured it. */
  takePercent(): number {
    const elapsedMs = this.#ports.clock() - this.#takenAtMs;
    this.#takenAtMs += elapsedMs;
    if (this.#takenMs === undefined) return 0;
    const before = this.#takenMs;
    this.#takenMs = this.#withheldMs();
    return Math.min(((this.#takenMs - before) / Math.max(elapsedMs, 0.001)) * 100, 100);
  }

  /** Of the mean vCPU. */
  #withheldMs(): number {
    const activity = this.#ports.guest.activity();
    return activity.reduce((sum, { withheldMs }) => sum + withheldMs, 0) / Math.max(activity.length, 1);
  }

  /** Looks no more: what is withheld now stays withheld. */
  freeze(): void {
    this.#stopLooking();
  }

  /** The guest has all its time again. Nothing of this acts afterwards. */
  lift(): void {
    this.#stopLooking();
    this.#hold([]);
  }

  #look(): void {
    const parameters = this.#parameters();
    const { throttle, maxCpuThrottlePercent, throttleTriggerThresholdPercent, vcpuDirtyLimitBytesPerSecond } = parameters;
    if (throttle === "none") return this.#hold([]);
    const activity = this.#ports.guest.activity();
    const { dirtiedPages, elapsedMs } = this.#demand.look(activity, this.#ports.clock());
    this.#measureLink();
    const demands = this.#demand.perVcpu;
    if (throttle === "auto-converge") this.#hold(activity.map(() => Math.min(this.#wantedPercent, maxCpuThrottlePercent) / 100));
    else if (throttle === "dirty-limit") this.#hold(demands.map((demand) => shareFor(demand, vcpuDirtyLimitBytesPerSecond / PAGE_BYTES)));
    else {
      const link = this.#knownPagesPerSecond === 0 ? this.#fastestPagesPerSecond : this.#knownPagesPerSecond;
      const demand = demands.reduce((sum, one) => sum + one, 0);
      const allowance = this.#budget.allowance(dirtiedPages, elapsedMs, demand, link, throttleTriggerThresholdPercent);
      this.#hold(dealOut(demands, allowance));
    }
  }

  /** Until a round has finished: the fastest of its stretches, since in others it looked for what to send. */
  #measureLink(): void {
    const [now, sentPages] = [this.#ports.clock(), this.#ports.link.sentPages()];
    const elapsedMs = now - this.#stretch.atMs;
    if (elapsedMs < STRETCH_MS) return;
    this.#fastestPagesPerSecond = Math.max(this.#fastestPagesPerSecond, ((sentPages - this.#stretch.sentPages) * 1000) / elapsedMs);
    this.#stretch = { atMs: now, sentPages };
  }

  #hold(shares: readonly number[]): void {
    const longer = shares.length > this.#shares.length ? shares : this.#shares;
    const isNew = longer.some((_, at) => (shares[at] ?? 0) !== (this.#shares[at] ?? 0));
    this.#shares = shares;
    if (!isNew) return;
    this.#takenMs ??= this.#withheldMs();
    this.#ports.guest.withhold(shares);
  }
}
