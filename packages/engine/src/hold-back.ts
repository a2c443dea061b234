import { Bitmap } from "@precopy/guest";

/** When everything else is no more than this part of what is held, sending it by itself saves little more. */
const RELEASE_PART = 0.25;

/**
 * Hot pages wait: what was dirtied in two successive rounds will be dirty after the next one as well, so sending it then is for nothing. It is held until
 * little else is left, then sent with the rest, once; from there on rounds go as they would have gone, so the pause is no longer for it.
 */
export class HoldBack {
  readonly #held: Bitmap;
  readonly #before: Bitmap;
  readonly #hot: Bitmap;
  #isOver = false;

  constructor(pages: number) {
    this.#held = new Bitmap(pages);
    this.#before = new Bitmap(pages);
    this.#hot = new Bitmap(pages);
  }

  /** Takes hot pages out of what was dirtied in the round that has ended, or gives all of them back into it. */
  take(collected: Bitmap): void {
    if (this.#isOver) return;
    this.#hot.copy(collected);
    this.#hot.intersect(this.#before);
    this.#before.copy(collected);
    this.#held.join(this.#hot);
    collected.remove(this.#held);
    if (collected.count() > RELEASE_PART * this.#held.count()) return;
    this.release(collected);
  }

  /** Gives back what is held, and holds nothing any more. */
  release(into: Bitmap): void {
    this.#isOver = true;
    into.join(this.#held);
    this.#held.clear();
  }

  /** How many pages wait. */
  get heldPages(): number {
    return this.#isOver ? 0 : this.#held.count();
  }
}
