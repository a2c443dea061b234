import assert from "node:assert/strict";
import { it } from "node:test";
import { isLinuxAvailable, mayUseCongestionControl } from "@precopy/linux";
import { checkCongestionControl } from "./pump.js";

it("auto is refused nowhere", () => assert.doesNotThrow(() => checkCongestionControl("auto")));

it("a name is refused exactly if the kernel refuses it, with the setting that allows it", { skip: !isLinuxAvailable }, () => {
  for (const name of ["reno", "bbr", "no_such_thing"]) {
    const check = (): void => checkCongestionControl(name);
    if (mayUseCongestionControl(name)) assert.doesNotThrow(check);
    else assert.throws(check, { code: "ERR_CAPABILITY", message: new RegExp(`${name}: .* net\\.ipv4\\.tcp_allowed_congestion_control$`) });
  }
  assert.equal(mayUseCongestionControl("no_such_thing"), false);
});

it("a name is refused where nobody can set it", { skip: isLinuxAvailable && "here it can be set" }, () =>
  assert.throws(() => checkCongestionControl("cubic"), { code: "ERR_CAPABILITY", message: /cannot be set here/ }),
);
