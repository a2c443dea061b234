import { TYPICAL_COSTS, watchedWriter } from "@precopy/engine";
import type { CurvePoint, Measured } from "@precopy/engine";
import { Bitmap } from "@precopy/guest";
import type { MemoryService } from "@precopy/guest";
import { PAGE_BYTES } from "@precopy/protocol";
import type { RoundProgress } from "@precopy/protocol";
import type { HandoverCosts } from "./plan.js";

/** The dirty log is looked at so long after it was started, and then each time after three times as long. */
const FIRST_LOOKS_MS = [30, 100, 300, 1000];
const LATER_FACTOR = 3;
/** What a first round does not tell of the link: how much its speed will vary. */
const LINK_SPREAD = 0.05;

/** What is known beside what the first round shows. Times in ms. */
export interface KnownCosts {
  readonly pauseMs: number;
  readonly resumeMs: number;
  readonly roundTripMs: number;
  readonly handover: HandoverCosts;
  readonly channels: number;
}

/**
 * Watches how many different pages the guest writes during the first round, by looking at the armed dirty log without taking anything out of it:
 * it costs the guest nothing, and the migration a few milliseconds of a thread that has nothing to do then.
 */
export class FirstRound {
  readonly #memory: MemoryService;
  readonly #seen: Bitmap;
  readonly #points: CurvePoint[] = [];
  #timer: NodeJS.Timeout | undefined;
  #startedAt = 0;
  #listMs = 0;
  #isOver = false;

  constructor(memory: MemoryService, pages: number) {
    this.#memory = memory;
    this.#seen = new Bitmap(pages);
  }

  /** The dirty log is armed. @param listMs what that took. */
  begin(listMs: number): void {
    this.#startedAt = performance.now();
    this.#listMs = listMs;
    this.#lookAfter(FIRST_LOOKS_MS[0]!, 1);
  }

  #lookAfter(ms: number, next: number): void {
    this.#timer = setTimeout(() => void this.#look(ms, next), this.#startedAt + ms - performance.now());
  }

  async #look(ms: number, next: number): Promise<void> {
    this.#seen.clear();
    await this.#memory.peek(this.#seen).then(
      () => {
        if (!this.#isOver) this.#points.push({ ms: performance.now() - this.#startedAt, pages: this.#seen.count() });
      },
      () => {}, // the migration ends, and its dirty log with it
    );
    if (!this.#isOver) this.#lookAfter(FIRST_LOOKS_MS[next] ?? ms * LATER_FACTOR, next + 1);
  }

  /** What is collected from now on is not the first round's. */
  end(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    clearTimeout(this.#timer);
  }

  /** What a model needs to know, of the first round as it was. */
  measured(round: RoundProgress, pages: number, { pauseMs, resumeMs, roundTripMs, handover, channels }: KnownCosts): Measured {
    const { normalPages, zeroPages, bytes, durationMs, startMs, collectMs, remainingPages } = round;
    const points = [...this.#points, { ms: durationMs, pages: remainingPages }].filter(({ ms }) => ms <= durationMs);
    // A page of zeros takes a thousandth of what one with data does, or less; where there is nothing else it is all there is.
    const bytesPerSecond = (Math.max(bytes, PAGE_BYTES) / Math.max(durationMs - roundTripMs, durationMs / 2, 0.01)) * 1000;
    return {
      guest: { pages, populatedPages: normalPages, zeroPages, vcpus: [watchedWriter(points, Math.max(1, normalPages, remainingPages))] },
      link: { bytesPerSecond, roundTripMs },
      costs: {
        setupMs: Math.max(0, startMs - collectMs),
        listMs: this.#listMs,
        zeroPageMs: normalPages === 0 && zeroPages > 0 ? durationMs / zeroPages / channels : 0,
        pauseMs,
        resumeMs,
        collectMs: this.#listMs,
        roundMs: roundTripMs,
        prepareMs: Math.max(0, handover.send - roundTripMs),
        commitMs: Math.max(0, handover.commit - resumeMs),
        faultMs: TYPICAL_COSTS.faultMs,
        wireBytesPerPage: normalPages === 0 ? PAGE_BYTES : bytes / normalPages,
      },
      linkSpread: LINK_SPREAD,
      dirtySpread: 0,
    };
  }
}
