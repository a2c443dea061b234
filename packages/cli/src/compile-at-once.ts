import { setFlagsFromString } from "node:v8";

// A hand-over is a chain of small steps, each of which runs once or twice in the life of an agent. V8 interprets such functions, and looks up
// every property anew; with this it compiles each one, without optimizing it, the first time it runs. Imported before everything else.
setFlagsFromString("--always-sparkplug");
