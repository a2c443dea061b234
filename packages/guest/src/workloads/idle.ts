import { fillRegion } from "../fill.js";
import type { Workload } from "../workload.js";

/** Does nothing, and ticks. Options: fill, fillKind (see fill.ts). */
const idle: Workload = {
  create: (context) => ({
    boot: () => fillRegion(context),
    step: () => 1000,
    save: () => null,
    load: () => {},
  }),
};
export default idle;
