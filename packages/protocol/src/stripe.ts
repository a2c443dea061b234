import { STRIPE_PAGES } from "./limits.js";

/**
 * Lane of `page`: a fixed function. One channel at a time carries a lane, so every version of a page travels on one TCP stream, in order,
 * and rounds need no barrier across lanes.
 */
export const laneOfPage = (page: number, lanes: number): number => Math.floor(page / STRIPE_PAGES) % lanes;

/** Bitmap words in one stripe. */
export const STRIPE_WORDS = STRIPE_PAGES / 32;
