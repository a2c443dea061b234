import { readFile } from "node:fs/promises";

/** Addresses; the end is outside. Those above 2^53 lose their last digits. */
export interface AddressSpan {
  readonly start: number;
  readonly end: number;
}

/** A stretch of one process's address space that has the same properties throughout. */
export interface MemoryArea extends AddressSpan {
  /** As the kernel writes it, such as `rw-p`. */
  readonly access: string;
  readonly residentBytes: number;
}

const AREA_OR_RSS = /^(?:([0-9a-f]+)-([0-9a-f]+) ([a-z-]{4}) |Rss: +(\d+) kB$)/gm;

/** Out of the text of /proc/PID/smaps, in its order. */
export function parseAreas(smaps: string): MemoryArea[] {
  const areas: MemoryArea[] = [];
  let [from, to, mode]: (string | undefined)[] = [];
  for (const [, start, end, access, kib] of smaps.matchAll(AREA_OR_RSS)) {
    if (start !== undefined) [from, to, mode] = [start, end, access];
    else if (from !== undefined && to !== undefined && mode !== undefined)
      areas.push({ start: Number.parseInt(from, 16), end: Number.parseInt(to, 16), access: mode, residentBytes: Number(kib) * 1024 });
  }
  return areas;
}

/**
 * Tells a guest's segments from everything else: V8 lays address space that nobody may touch before and behind each WebAssembly memory, so a
 * segment is a stretch of writable areas between two such ones that is exactly as long as a segment of this guest. It is several areas where
 * the kernel was advised about parts of it. No other memory of an agent is as long as that.
 */
export function findSegments(areas: readonly MemoryArea[], segmentBytes: readonly number[]): AddressSpan[] {
  const isClosed = (area: MemoryArea | undefined): area is MemoryArea => area?.access.startsWith("---") === true;
  const isOpen = (area: MemoryArea | undefined): area is MemoryArea => area?.access.startsWith("rw-") === true;
  const segments: AddressSpan[] = [];
  for (let at = 1; at < areas.length; at++) {
    const [before, first] = [areas[at - 1], areas[at]];
    if (!isClosed(before) || !isOpen(first) || before.end !== first.start) continue;
    let end = first.end;
    let next = at + 1;
    // One that grew while the kernel listed it is there again, with its old start.
    for (let area = areas[next]; isOpen(area) && area.start <= end; area = areas[++next]) end = Math.max(end, area.end);
    const behind = areas[next];
    if (isClosed(behind) && behind.start === end && segmentBytes.includes(end - first.start)) segments.push({ start: first.start, end });
  }
  return segments;
}

/** What is resident of the areas outside of all these spans, bytes; files that are mapped included. */
export const residentOutside = (areas: readonly MemoryArea[], spans: readonly AddressSpan[]): number =>
  areas
    .filter(({ start, end }) => !spans.some((span) => start < span.end && end > span.start))
    .reduce((sum, { residentBytes }) => sum + residentBytes, 0);

/**
 * Of a process on this host. Not one moment: an area that is changed meanwhile may be there twice. Takes 5 ms for an agent on an idle host, and
 * seconds where processors are scarce and the agent changes its areas. @throws {Error} if it is gone
 */
export const areasOf = async (pid: number): Promise<MemoryArea[]> => parseAreas(await readFile(`/proc/${pid}/smaps`, "utf8"));
