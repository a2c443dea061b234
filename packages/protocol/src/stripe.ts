import { STRIPE_PAGES } from "./limits.js";

/**
 * Channel that carries `page`: a fixed function, so every version of a page travels on one TCP stream, in order,
 * and rounds need no barrier across channels.
 */
export const channelOfPage = (page: number, channels: number): number => Math.floor(page / STRIPE_PAGES) % channels;

/** Bitmap words in one stripe. */
export const STRIPE_WORDS = STRIPE_PAGES / 32;
