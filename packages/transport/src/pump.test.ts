import assert from "node:assert/strict";
import { it } from "node:test";
import { isLinuxAvailable, mayUseCongestionControl } from "@precopy/linux";
import { checkCongestionControl } from "./pump.js";

it("auto is refused nowhere, and a name where the pump cannot set it", () => {
  for (const pump of ["direct", "portable"] as const) assert.doesNotThrow(() => checkCongestionControl("auto", pump));
  assert.throws(() => checkCongestionControl("cubic", "portable"), { code: "ERR_CAPABILITY", message: /cubic needs the direct pump/ });
});

it("a name is refused exactly if the kernel refuses it, with the setting that allows it", { skip: !isLinuxAvailable }, () => {
  for (const name of ["reno", "bbr", "no_such_thing"]) {
    const check = (): void => checkCongestionControl(name, "direct");
    if (mayUseCongestionControl(name)) assert.doesNotThrow(check);
    else assert.throws(check, { code: "ERR_CAPABILITY", message: new RegExp(`${name}: .* net\\.ipv4\\.tcp_allowed_congestion_control$`) });
  }
  assert.equal(mayUseCongestionControl("no_such_thing"), false);
});
