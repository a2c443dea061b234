import { pumpSuite } from "./pump-suite.js";
import { resumeSuite } from "./resume-suite.js";

pumpSuite("portable");
resumeSuite("portable");
