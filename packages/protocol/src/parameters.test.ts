import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { CHANNELS_MAX } from "./limits.js";
import { DEFAULT_PARAMETERS, THROTTLES, fillParameters, reportParameters } from "./parameters.js";
import type { MigrationParameters } from "./parameters.js";

describe("fillParameters", () => {
  it("gives the documented defaults for what is not said, and what was said for the rest", () => {
    assert.deepEqual(fillParameters({}), DEFAULT_PARAMETERS);
    assert.deepEqual(fillParameters({ multifdChannels: 4 }), { ...DEFAULT_PARAMETERS, multifdChannels: 4 });
    assert.equal(DEFAULT_PARAMETERS.downtimeLimitMs, 300, "QEMU's default");
    assert.equal(DEFAULT_PARAMETERS.multifdChannels, 2, "QEMU's default");
  });

  it("takes both ends of each range", () => {
    const ends: Partial<MigrationParameters>[] = [
      { downtimeLimitMs: 0 },
      { downtimeLimitMs: 2_000_000 },
      { maxBandwidthBytesPerSecond: 0 },
      { maxBandwidthBytesPerSecond: Number.MAX_SAFE_INTEGER },
      { multifdChannels: 1 },
      { multifdChannels: CHANNELS_MAX },
      { multifdCompression: "lz4" },
      { multifdCompression: "auto" },
      { multifdCompression: "zstd" },
      { isXbzrleOn: true },
      { isHoldBackOn: true },
      { isPauseBeforeSwitchoverOn: true },
      { xbzrleCacheBytes: CHANNELS_MAX * 4096 },
      { xbzrleCacheBytes: 2 ** 31 },
      { mode: "stop-and-copy" },
      { pump: "direct" },
      { pump: "portable" },
      ...THROTTLES.map((throttle) => ({ throttle })),
      { throttleTriggerThresholdPercent: 1 },
      { throttleTriggerThresholdPercent: 100 },
      { cpuThrottleInitialPercent: 99 },
      { cpuThrottleIncrementPercent: 1 },
      { maxCpuThrottlePercent: 99 },
      { vcpuDirtyLimitBytesPerSecond: 4096 },
      { timeoutMs: 2 ** 31 - 1 },
      { timeoutAction: "force" },
      { congestionControl: "a" },
      { congestionControl: "dctcp_0123456_9" },
    ];
    for (const given of ends) assert.deepEqual(fillParameters(given), { ...DEFAULT_PARAMETERS, ...given });
  });

  it("refuses the first value past each end, and repairs none; the message names the option as typed", () => {
    const numbers = {
      downtimeLimitMs: "downtime-limit",
      maxBandwidthBytesPerSecond: "max-bandwidth",
      multifdChannels: "multifd-channels",
      throttleTriggerThresholdPercent: "throttle-trigger-threshold",
      cpuThrottleInitialPercent: "cpu-throttle-initial",
      cpuThrottleIncrementPercent: "cpu-throttle-increment",
      maxCpuThrottlePercent: "max-cpu-throttle",
      vcpuDirtyLimitBytesPerSecond: "vcpu-dirty-limit",
      timeoutMs: "timeout",
      xbzrleCacheBytes: "xbzrle-cache-size",
      maxPostcopyBandwidthBytesPerSecond: "max-postcopy-bandwidth",
    } as const;
    const bad: [Partial<MigrationParameters>, string][] = [
      [{ downtimeLimitMs: 2_000_001 }, "downtime-limit"],
      [{ multifdChannels: 0 }, "multifd-channels"],
      [{ multifdChannels: CHANNELS_MAX + 1 }, "multifd-channels"],
      [{ maxBandwidthBytesPerSecond: 2 ** 53 }, "max-bandwidth"],
      [{ xbzrleCacheBytes: 2 ** 31 + 1 }, "xbzrle-cache-size"],
      [{ throttleTriggerThresholdPercent: 101 }, "throttle-trigger-threshold"],
      [{ cpuThrottleInitialPercent: 100 }, "cpu-throttle-initial"],
      [{ cpuThrottleIncrementPercent: 0 }, "cpu-throttle-increment"],
      [{ maxCpuThrottlePercent: 100 }, "max-cpu-throttle"],
      [{ vcpuDirtyLimitBytesPerSecond: 4095 }, "vcpu-dirty-limit"],
      [{ timeoutMs: 2 ** 31 }, "timeout"],
      [{ throttle: "slow" as "sdps" }, "throttle"],
      // A command line delivers any string; the casts stand for that.
      [{ timeoutAction: "suspend" as "force" }, "timeout-action"],
      [{ mode: "live" as "precopy" }, "mode"],
      // What does not go together.
      [{ timeoutAction: "postcopy" }, "mode"],
      [{ mode: "postcopy", isXbzrleOn: true }, "mode"],
      [{ mode: "hybrid", isXbzrleOn: true }, "mode"],
      [{ mode: "postcopy", isPauseBeforeSwitchoverOn: true }, "mode"],
      [{ multifdCompression: "brotli" as "lz4" }, "multifd-compression"],
      [{ pump: "rdma" as "auto" }, "pump"],
      [{ congestionControl: "" }, "congestion-control"],
      [{ congestionControl: "a123456789012345" }, "congestion-control"],
      [{ congestionControl: "Cubic" }, "congestion-control"],
      [{ congestionControl: "bbr\n" }, "congestion-control"],
    ];
    for (const [key, option] of Object.entries(numbers))
      for (const value of [-1, 0.5, Number.NaN, Number.POSITIVE_INFINITY]) bad.push([{ [key]: value }, option]);
    for (const [given, option] of bad)
      assert.throws(() => fillParameters(given), { code: "ERR_PARAMETER", message: new RegExp(`^${option} is `) }, JSON.stringify(given));
  });
});

it("reportParameters names every parameter exactly once", () => {
  const report = reportParameters(DEFAULT_PARAMETERS);
  assert.equal(Object.keys(report).length, Object.keys(DEFAULT_PARAMETERS).length);
  assert.deepEqual(Object.values(report), Object.values(DEFAULT_PARAMETERS));
});
