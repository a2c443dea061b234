import type { Bitmap } from "./bitmap.js";

/** mmu: the page tables tell. barrier: the writer tells. */
export type DirtyLogKind = "mmu" | "barrier";

/**
 * What `start` lists. populated: what may be other than zero, as the page tables or the map of pages ever written tell. all: every page there is,
 * as if nobody knew; to measure what knowing saves.
 */
export type FirstList = "populated" | "all";

/** Who knows which pages were written. One collector owns it; it is called from one thread. */
export interface DirtyLog {
  readonly kind: DirtyLogKind;
  /**
   * Arms the log, and adds to `into` every page that may be other than zero, in one atomic step: a write is in `into` or in the next
   * collection. Pages the guest never touched are neither listed nor read, unless the log was made to list all.
   * @throws {MigrationError} ERR_ALREADY_TRACKING on a second start, ERR_SYSTEM_CALL
   */
  start(into: Bitmap): void;
  /**
   * Adds to `into` every page written since the previous call and forgets it here; bits already set stay set.
   * Concurrency: the guest may be writing. A write lands in this collection or the next, never in neither, if page bytes are read only
   * after this returns (docs/adr/0003).
   * @param known what was written there need not be told: a stripe that it has as a whole may be left as it is, for the next collection.
   * @throws {MigrationError} ERR_NOT_TRACKING before `start()`.
   * @see Clark et al., "Live Migration of Virtual Machines", NSDI 2005.
   */
  collect(into: Bitmap, known?: Bitmap): void;
  /**
   * Adds to `into` what `collect` would, and forgets nothing: the next call finds the same pages and more. For whoever wants to know how many there are.
   * @throws {MigrationError} ERR_NOT_TRACKING before `start()`.
   */
  peek(into: Bitmap): void;
  /** Disarms; writes are as cheap again as if it had never run. Harmless when not armed. */
  stop(): void;
}
