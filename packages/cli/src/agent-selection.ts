import { homedir, tmpdir } from "node:os";
import { isAbsolute, join, resolve } from "node:path";
import type { Command, OptionValues } from "@commander-js/extra-typings";
import { option, parseName, parseText, refuse } from "./option-parsers.js";
import type { None, OptionsOf } from "./option-parsers.js";

/** Which agent of this host is meant. */
export interface AgentSelection {
  readonly name: string;
  /** Path of its Unix socket. */
  readonly socket: string;
}

const inFolder = (folder: string | undefined, otherwise: string): string =>
  folder !== undefined && isAbsolute(folder) ? join(folder, "precopy") : otherwise;

/** Where the agent called `name` listens for commands: `$XDG_RUNTIME_DIR/precopy/NAME.sock`, else `<tmpdir>/precopy-<uid>/NAME.sock`. */
export const socketPath = (name: string, runtimeFolder = process.env["XDG_RUNTIME_DIR"]): string =>
  join(inFolder(runtimeFolder, join(tmpdir(), `precopy-${process.getuid?.() ?? 0}`)), `${name}.sock`);

/** Where it keeps journal and history: `$XDG_STATE_HOME/precopy/NAME`, else `~/.local/state/precopy/NAME`. */
export const statePath = (name: string, stateFolder = process.env["XDG_STATE_HOME"]): string =>
  join(inFolder(stateFolder, join(homedir(), ".local", "state", "precopy")), name);

/** `sun_path` holds 104 bytes on some systems; a dead agent's socket is moved aside under a name that may be a little longer. */
const SOCKET_PATH_BYTES_MAX = 95;

export const withSelection = <A extends unknown[], O extends OptionValues, G extends OptionValues>(command: Command<A, O, G>) =>
  command
    .addOption(option("--name <NAME>", "name of the agent on this host", parseName).default("default", "default"))
    .addOption(
      option(
        "--socket <PATH>",
        "its Unix socket (default: $XDG_RUNTIME_DIR/precopy/NAME.sock, else <tmpdir>/precopy-<uid>/NAME.sock)",
        parseText,
      ),
    );

export const stateDirOption = () =>
  option(
    "--state-dir <DIR>",
    "where journal and history are kept (default: $XDG_STATE_HOME/precopy/NAME, else ~/.local/state/precopy/NAME)",
    parseText,
  );
export const stateDirOf = ({ name, stateDir }: { readonly name: string; readonly stateDir?: string }): string =>
  stateDir === undefined ? statePath(name) : resolve(stateDir);

type GivenSelection = OptionsOf<ReturnType<typeof withSelection<[], None, None>>>;

export function selectionOf({ name, socket }: GivenSelection): AgentSelection {
  const path = socket === undefined ? socketPath(name) : resolve(socket);
  const bytes = Buffer.byteLength(path);
  if (bytes > SOCKET_PATH_BYTES_MAX) refuse(`--socket "${path}" has ${bytes} bytes, at most ${SOCKET_PATH_BYTES_MAX}: give a shorter one`);
  return { name, socket: path };
}
