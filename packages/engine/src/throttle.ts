/** The controllers withhold at most this share of a vCPU's time: what runs then is a step now and then, and more would be a pause. */
export const SHARE_MAX = 0.999;

/**
 * Deals a rate of dirtying out to vCPUs: whoever wants less than an equal part of it gets what it wants, and the rest is shared by the others
 * (max-min fairness), so a vCPU that writes little is not held for one that writes much.
 * @param demands what each would dirty if nothing were withheld, pages/s, 0 or more. @param allowance of all together, pages/s; Infinity for no limit.
 * @returns the share of its time to withhold from each, 0 to SHARE_MAX.
 */
export function dealOut(demands: readonly number[], allowance: number): number[] {
  let left = Math.max(allowance, 0);
  let level = Infinity;
  const ascending = demands.toSorted((one, other) => one - other);
  for (let at = 0; at < ascending.length; at++) {
    const equal = left / (ascending.length - at);
    const demand = ascending[at] ?? 0;
    if (demand > equal) {
      level = equal;
      break;
    }
    left -= demand;
  }
  return demands.map((demand) => shareFor(demand, level));
}

/** The share to withhold from a vCPU that would dirty `demand` pages/s, so that it dirties `allowance`. */
export const shareFor = (demand: number, allowance: number): number =>
  demand <= allowance ? 0 : Math.min(1 - allowance / demand, SHARE_MAX);

/** A debt is paid back within about this time. */
const PAY_BACK_MS = 1000;
/**
 * A guest that dirties more than the threshold is held at this much of it. What is withheld in all is (1 - f R / D) / (1 - f) of what the first round takes, for
 * a guest that would dirty D, a link that carries R, and a share f of it at which the guest is held: the lower f, the less in all, and the sooner it is over.
 */
const HELD_PART = 0.5;

/**
 * Stun during page send: what the guest may dirty from now on, so that every round is shorter than the one before by a factor, and the migration ends.
 * A guest that dirties less than a share of what the link carries is left alone. What it dirtied beyond what it may is a debt, taken off what it may.
 * @see Nelson, Lim, Hutchins, "Fast Transparent Migration for Virtual Machines", USENIX ATC 2005, for the idea of slowing the writer down; the
 * name is vMotion's.
 */
export class SdpsBudget {
  #debtPages = 0;

  /**
   * @param dirtiedPages since the last call, over `elapsedMs`. @param demand what all vCPUs would dirty, pages/s. @param linkPagesPerSecond what the link
   * carries; 0 while nobody knows. @param thresholdPercent 1 to 100. @returns pages/s that all vCPUs together may dirty; Infinity for no limit.
   */
  allowance(dirtiedPages: number, elapsedMs: number, demand: number, linkPagesPerSecond: number, thresholdPercent: number): number {
    const threshold = (linkPagesPerSecond * thresholdPercent) / 100;
    if (linkPagesPerSecond === 0 || demand <= threshold) {
      this.#debtPages = 0;
      return Infinity;
    }
    const rate = threshold * HELD_PART;
    // No credit for quiet times: a burst after one would be as long as it. No endless debt: what was dirtied is dirty only once.
    const debtMax = (rate * PAY_BACK_MS) / 1000;
    this.#debtPages = Math.min(Math.max(this.#debtPages + dirtiedPages - (rate * elapsedMs) / 1000, 0), debtMax);
    return Math.max(rate - (this.#debtPages * 1000) / PAY_BACK_MS, 0);
  }
}
