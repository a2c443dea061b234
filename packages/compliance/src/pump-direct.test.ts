import { isLinuxAvailable } from "@precopy/linux";
import { pumpSuite } from "./pump-suite.js";
import { resumeSuite } from "./resume-suite.js";

const skip = isLinuxAvailable ? false : `no system calls on ${process.platform} ${process.arch}`;
pumpSuite("direct", skip);
resumeSuite("direct", skip);
