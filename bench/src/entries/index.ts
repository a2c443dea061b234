import type { Bench } from "../define-bench.js";
import { agentMemoryEntries } from "./agent-memory.js";
import { throughputEntries } from "./channel-throughput.js";
import { compressionEntries } from "./compression.js";
import { convergenceEntries } from "./convergence.js";
import { curveEntries } from "./curves.js";
import { demoEntries } from "./demo-migrations.js";
import { dirtyLogEntries } from "./dirty-log.js";
import { forecastEntries } from "./forecast.js";
import { foundingNfvEntries } from "./founding-nfv.js";
import { foundingOptionsEntries } from "./founding-options.js";
import { kernelEntries } from "./kernels.js";
import { linkSpeedEntries } from "./link-speed.js";
import { pauseEntries } from "./pause.js";
import { postcopyEntries } from "./postcopy.js";
import { slowdownEntries } from "./slowdown.js";
import { strangersEntries } from "./strangers.js";
import { tlsEntries } from "./tls.js";
import { pauseOf100, pausesEntries, versusEntries } from "./versus.js";

/** In the order they run. */
export const entries: readonly Bench[] = [
  ...versusEntries,
  ...throughputEntries,
  ...kernelEntries,
  ...pauseOf100,
  ...pausesEntries,
  ...slowdownEntries,
  ...agentMemoryEntries,
  ...curveEntries,
  ...foundingNfvEntries,
  ...foundingOptionsEntries,
  ...convergenceEntries,
  ...postcopyEntries,
  ...forecastEntries,
  ...linkSpeedEntries,
  ...compressionEntries,
  ...tlsEntries,
  ...strangersEntries,
  ...demoEntries,
  ...pauseEntries,
  ...dirtyLogEntries,
];
