import type { ModelVcpu } from "./writer-models.js";

/** A guest that runs at the target and lacks some of its memory. */
export interface FetchStart {
  /** That are missing when it runs. */
  readonly missingPages: number;
  /** With data, all of them; the working sets lie among these, and so do the missing pages, evenly. */
  readonly populatedPages: number;
  readonly vcpus: readonly ModelVcpu[];
  /** Missing pages that the link brings, pages/ms. */
  readonly pagesPerMs: number;
  /** From a vCPU's stop at a missing page to the page's being there, ms. */
  readonly faultMs: number;
}

/** What it comes to. */
export interface Fetched {
  readonly ms: number;
  /** Pages that a vCPU stopped at. */
  readonly faults: number;
  /** Of the mean vCPU's time, spent at missing pages. */
  readonly blockedMs: number;
}

const STEPS = 2000;

/**
 * Post-copy: pages come as fast as the link carries them, and a vCPU that touches one before it has come waits for it. Which pages a vCPU touches is
 * told by its curve of distinct pages over the time that it runs, so a small working set is asked for at once and then runs freely.
 */
export function fetchModel({ missingPages, populatedPages, vcpus, pagesPerMs, faultMs }: FetchStart): Fetched {
  const share = missingPages / Math.max(populatedPages, 1);
  const totalMs = missingPages / pagesPerMs;
  const stepMs = Math.max(totalMs / STEPS, 1e-6);
  const ranMs = vcpus.map(() => 0);
  let [faults, blockedMs] = [0, 0];
  for (let ms = 0; ms < totalMs; ms += stepMs) {
    const stillMissing = share * (1 - ms / totalMs);
    vcpus.forEach((vcpu, at) => {
      // Each new page costs a fault if it is missing: the step is divided between running and waiting.
      const aheadMs = Math.min(stepMs, 1);
      const newPagesPerMs = (vcpu.distinctPages(ranMs[at]! + aheadMs) - vcpu.distinctPages(ranMs[at]!)) / aheadMs;
      const faultsPerMs = newPagesPerMs * stillMissing;
      const runs = stepMs / (1 + faultsPerMs * faultMs);
      ranMs[at]! += runs;
      faults += faultsPerMs * runs;
      blockedMs += (stepMs - runs) / vcpus.length;
    });
  }
  return { ms: totalMs, faults, blockedMs };
}
