import { isLinuxAvailable } from "@precopy/linux";
import { pumpSuite } from "./pump-suite.js";

pumpSuite("direct", isLinuxAvailable ? false : `no system calls on ${process.platform} ${process.arch}`);
