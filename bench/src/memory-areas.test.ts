import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { findSegments, parseAreas, residentOutside } from "./memory-areas.js";
import type { MemoryArea } from "./memory-areas.js";

const SMAPS = `00400000-00b6f000 r--p 00000000 fe:00 1 /usr/bin/node
Size:               7612 kB
Rss:                7420 kB
Pss:                2473 kB
VmFlags: rd mr mw me
7efff0000000-7f00f0000000 rw-p 00000000 00:00 0
Size:            4194304 kB
Rss:                   4 kB
THPeligible:           1
VmFlags: rd wr mr mw me uw dc nr
7ffc0a8c0000-7ffc0a8e1000 rw-p 00000000 00:00 0 [stack of Rss: 7 kB]
Rss:                 132 kB
`;

it("areas are read with their resident bytes, whatever a mapped file is called", () => {
  assert.deepEqual(parseAreas(SMAPS), [
    { start: 0x400000, end: 0xb6f000, access: "r--p", residentBytes: 7420 * 1024 },
    { start: 0x7efff0000000, end: 0x7f00f0000000, access: "rw-p", residentBytes: 4096 },
    { start: 0x7ffc0a8c0000, end: 0x7ffc0a8e1000, access: "rw-p", residentBytes: 132 * 1024 },
  ]);
});

/** Areas from 0 on, one behind the other; resident as long as they are. */
const layOut = (...parts: readonly (readonly [access: string, bytes: number])[]): MemoryArea[] => {
  let end = 0;
  return parts.map(([access, bytes]) => {
    const start = end;
    end += bytes;
    return { start, end, access, residentBytes: access === "---p" ? 0 : bytes };
  });
};

describe("a guest's segments", () => {
  it("lie between address space that nobody may touch, in one area or in several", () => {
    const areas = layOut(["rw-p", 5], ["---p", 20], ["rw-p", 40], ["---p", 60], ["rw-p", 10], ["rw-p", 30], ["---p", 60], ["r-xp", 7]);
    assert.deepEqual(findSegments(areas, [40, 40]), [
      { start: 25, end: 65 },
      { start: 125, end: 165 },
    ]);
  });

  it("are found also while an area in them grows, and is listed twice", () => {
    const areas = layOut(["---p", 20], ["rw-p", 10], ["rw-p", 30], ["---p", 60]);
    const twice = [...areas.slice(0, 2), { start: 20, end: 35, access: "rw-p", residentBytes: 15 }, { ...areas[2]!, start: 35 }, areas[3]!];
    assert.deepEqual(findSegments(twice, [40]), [{ start: 20, end: 60 }]);
  });

  it("have this guest's sizes: another memory between such space is none", () => {
    const areas = layOut(["---p", 20], ["rw-p", 41], ["---p", 60], ["rw-p", 39], ["---p", 60], ["rw-p", 16], ["---p", 1]);
    assert.deepEqual(findSegments(areas, [40, 16]), [{ start: 220, end: 236 }]);
  });

  it("are not areas of such a size that lie elsewhere, or do not fit together", () => {
    const elsewhere = [
      layOut(["r--p", 1], ["rw-p", 40], ["---p", 60]),
      layOut(["---p", 1], ["rw-p", 40], ["r--p", 60]),
      layOut(["---p", 1], ["r-xp", 40], ["---p", 60]),
      layOut(["---p", 1], ["rw-p", 40]),
      layOut(["rw-p", 40], ["---p", 1]),
      [
        { start: 0, end: 1, access: "---p", residentBytes: 0 },
        { start: 2, end: 42, access: "rw-p", residentBytes: 40 },
        { start: 42, end: 43, access: "---p", residentBytes: 0 },
      ],
    ];
    for (const areas of elsewhere) assert.deepEqual(findSegments(areas, [40]), []);
  });
});

describe("what is resident outside of them", () => {
  const areas = layOut(["rw-p", 5], ["---p", 20], ["rw-p", 40], ["---p", 60], ["r-xp", 7]);

  it("is everything where there are none", () => {
    assert.equal(residentOutside(areas, []), 52);
  });

  it("is not an area that lies in one, also if it was seen twice while it grew", () => {
    const seenTwice = [...areas.slice(0, 3), { start: 25, end: 45, access: "rw-p", residentBytes: 20 }, ...areas.slice(3)];
    for (const seen of [areas, seenTwice]) assert.equal(residentOutside(seen, [{ start: 25, end: 65 }]), 12);
  });
});
