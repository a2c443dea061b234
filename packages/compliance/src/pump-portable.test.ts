import { pumpSuite } from "./pump-suite.js";

pumpSuite("portable");
