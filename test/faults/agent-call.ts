import { connect } from "node:net";
import { createInterface } from "node:readline";
import type { MigrationParameters, MigrationReport, ProgressEvent } from "@precopy/protocol";

/** A request to an agent's command socket (docs/wire-format.md, 9). Without a process of its own a question costs no second. */
type Request =
  | { readonly command: "migrate"; readonly to: string; readonly parameters: Partial<MigrationParameters> }
  | { readonly command: "status" | "cancel" }
  | {
      readonly command: "resolve";
      readonly guest: string;
      readonly way: "take-back" | "give-up";
      readonly isOtherSideFenced: boolean;
      readonly isRollbackAccepted: boolean;
    };

/** What came of it. `gone`: the agent ended without an answer, or nobody listens there. */
export type Answer<T> =
  | { readonly type: "ok"; readonly value: T }
  | { readonly type: "error"; readonly code: string; readonly message: string }
  | { readonly type: "gone" };

/** As much of `precopy status` as is looked at here. */
export interface Status {
  readonly guest: { readonly id: string; readonly epoch: number; readonly phase: string } | null;
  readonly "query-migrate"?: { readonly status?: string };
  /** Guests that an earlier process of the agent left in doubt. */
  readonly unresolved?: readonly { readonly guest: string }[];
}

type Line = { readonly event?: ProgressEvent; readonly ok?: unknown; readonly error?: { readonly code: string; readonly message: string } };

function call(socketPath: string, request: Request, onEvent: (event: ProgressEvent) => void = () => {}): Promise<Answer<unknown>> {
  return new Promise((resolve) => {
    const socket = connect(socketPath, () => socket.write(`${JSON.stringify(request)}\n`));
    const lines = createInterface({ input: socket });
    for (const one of [socket, lines]) one.on("error", () => {}); // `close` follows
    socket.on("close", () => resolve({ type: "gone" }));
    lines.on("line", (text) => {
      const line = JSON.parse(text) as Line; // written by an agent of this release
      if (line.event !== undefined) onEvent(line.event);
      else if (line.error !== undefined) resolve({ type: "error", code: line.error.code, message: line.error.message });
      else resolve({ type: "ok", value: line.ok });
    });
  });
}

export const askMigrate = (
  socketPath: string,
  to: string,
  parameters: Partial<MigrationParameters>,
  onEvent?: (event: ProgressEvent) => void,
): Promise<Answer<MigrationReport>> =>
  call(socketPath, { command: "migrate", to, parameters }, onEvent) as Promise<Answer<MigrationReport>>; // what `migrate` answers

export const askStatus = (socketPath: string): Promise<Answer<Status>> =>
  call(socketPath, { command: "status" }) as Promise<Answer<Status>>; // what `status` answers

export const askCancel = (socketPath: string): Promise<Answer<unknown>> => call(socketPath, { command: "cancel" });

/** An operator's word; an agent without the command answers ERR_BAD_MESSAGE. isRolledBack: what the guest did last may be lost. */
export const askResolve = (
  socketPath: string,
  guest: string,
  way: "take-back" | "give-up",
  isRollbackAccepted: boolean,
): Promise<Answer<{ readonly isRolledBack: boolean }>> =>
  call(socketPath, { command: "resolve", guest, way, isOtherSideFenced: true, isRollbackAccepted }) as Promise<
    Answer<{ readonly isRolledBack: boolean }>
  >; // what `resolve` answers
