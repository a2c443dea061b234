/** A device of the guest. Between `quiesce` and `start` it writes nothing and lets nothing in or out. */
export interface Device {
  /** Begins, or goes on after `quiesce`, at `epoch`: what leaves the device carries it. `isMoved`: the guest just arrived here. */
  start(epoch: number, isMoved: boolean): void;
  /** The guest has put something into the device's rings. */
  kick(): void;
  /** Settles what is under way and stops. May write guest memory before it returns, not after. */
  quiesce(): void;
  /** What is neither in guest memory nor in the manifest, as plain data. Only while quiet. */
  save(): unknown;
  load(state: unknown): void;
  /** Lets go of everything outside the guest. */
  close(): void;
}
