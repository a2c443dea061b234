import { labIdentity } from "./lab-identity.js";
import { pumpSuite } from "./pump-suite.js";

pumpSuite("portable", false, { tls: await labIdentity() });
