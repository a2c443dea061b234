import type { Bitmap } from "@precopy/guest";
import { STRIPE_PAGES } from "@precopy/protocol";

/** Number of a block of 2 MiB. */
export type Stripe = number;

/** Those with a page in them, in order. */
export function stripesWith(pages: Bitmap): Stripe[] {
  const stripes: Stripe[] = [];
  for (let stripe = pages.skipEmpty(0); stripe < pages.stripes; stripe = pages.skipEmpty(stripe + 1))
    if (pages.countStripe(stripe) > 0) stripes.push(stripe);
  return stripes;
}

/** Adds all pages of the stripes, of which the last may be shorter, to `into`. */
export function addStripes(into: Bitmap, stripes: readonly Stripe[]): void {
  for (const stripe of stripes) {
    const first = stripe * STRIPE_PAGES;
    into.setRun(first, Math.min(STRIPE_PAGES, into.pages - first));
  }
}

/** So many of them, each as likely as any other. */
export function draw<T>(all: readonly T[], count: number): T[] {
  const drawn = [...all];
  const taken = Math.min(count, drawn.length);
  for (let at = 0; at < taken; at++) {
    const other = at + Math.floor(Math.random() * (drawn.length - at));
    [drawn[at], drawn[other]] = [drawn[other]!, drawn[at]!];
  }
  return drawn.slice(0, taken);
}
