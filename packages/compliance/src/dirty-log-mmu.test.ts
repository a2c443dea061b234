import { MmuDirtyLog, whyNoMmuDirtyLog } from "@precopy/guest";
import { dirtyLogSuite } from "./dirty-log-suite.js";

const why = whyNoMmuDirtyLog();
dirtyLogSuite(
  "mmu",
  (memory) => ({ log: new MmuDirtyLog(memory.ranges()), barrier: undefined }),
  why === undefined ? false : `no mmu dirty log here: ${why}`,
);
