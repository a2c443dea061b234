/**
 * Words that a vCPU thread and the main thread share (Int32Array). REQUEST is written by the main thread only, PROBED by the vCPU only;
 * WAKE is raised by whoever has news, and is what the vCPU sleeps on. Whoever changes REQUEST or PROBE raises WAKE after it: a vCPU
 * reads WAKE, then looks for work, then sleeps only if WAKE is still what it read, so no news is slept over.
 */
export const VcpuWord = { REQUEST: 0, WAKE: 1, PROBE: 2, PROBED: 3 } as const;
const VCPU_WORDS = 4;

/**
 * What REQUEST may be. Stand: it has not run yet. From FirstPause on it is a pause, each with a number of its own: a pause that follows another at once is seen as
 * a new one, and an acknowledgement that comes late is not taken for the next pause's.
 */
export const VcpuRequest = { Run: 0, End: 1, Stand: 2, FirstPause: 3 } as const;

export function allocateVcpuControl(): Int32Array {
  const control = new Int32Array(new SharedArrayBuffer(VCPU_WORDS * 4));
  control[VcpuWord.REQUEST] = VcpuRequest.Stand;
  return control;
}

/** Raises WAKE: ends the vCPU's sleep, and the next one if it is not asleep yet. */
export function wake(control: Int32Array): void {
  Atomics.add(control, VcpuWord.WAKE, 1);
  Atomics.notify(control, VcpuWord.WAKE);
}
