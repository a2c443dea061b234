import { MmuDirtyLog, whyNoMmuDirtyLog } from "@precopy/guest";
import { dirtyLogSuite } from "./dirty-log-suite.js";
import { HUGE_PAGES, whyNoHugePages } from "./tracked-guest.js";
import type { MakeLog } from "./tracked-guest.js";

const why = whyNoMmuDirtyLog();
const skip = why === undefined ? false : `no mmu dirty log here: ${why}`;
const makeLog: MakeLog = (memory) => ({ log: new MmuDirtyLog(memory.ranges()), barrier: undefined });

dirtyLogSuite("mmu", makeLog, skip);
dirtyLogSuite(
  "mmu, over huge pages,",
  (memory) => {
    memory.expectDense(0, memory.pages);
    return makeLog(memory);
  },
  skip || (whyNoHugePages ?? false),
  HUGE_PAGES,
);
