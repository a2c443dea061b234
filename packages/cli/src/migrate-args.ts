import { Option } from "@commander-js/extra-typings";
import type { Command } from "@commander-js/extra-typings";
import { DEFAULT_PORT } from "@precopy/protocol";
import type { Address, LiveParameters, MigrationParameters } from "@precopy/protocol";
import { selectionOf, stateDirOf, stateDirOption, withSelection } from "./agent-selection.js";
import type { AgentSelection } from "./agent-selection.js";
import type { ResolveRequest } from "./command-socket.js";
import { guestOption, jsonOption, reportOption, targetArgument } from "./common-options.js";
import { liveParametersOf, modeOption, parametersOf, withLive, withMigration } from "./migration-options.js";
import { option, parseName, parsePeer, parseWhole, refuse } from "./option-parsers.js";

export interface MigrateOptions extends AgentSelection {
  readonly to: Address;
  /** Undefined: whichever the agent holds. */
  readonly guest: string | undefined;
  /** Only what was given; the agent knows the rest. */
  readonly parameters: Partial<MigrationParameters>;
  readonly report: string | undefined;
  readonly isJson: boolean;
}

export interface PlanOptions extends AgentSelection {
  readonly to: Address;
  /** Undefined: whichever the agent holds. */
  readonly guest: string | undefined;
  /** Only what was given; the agent knows the rest. */
  readonly parameters: Partial<MigrationParameters>;
  readonly isJson: boolean;
}

export interface DirtyRateOptions extends AgentSelection {
  /** Undefined: whichever the agent holds. */
  readonly guest: string | undefined;
  readonly isJson: boolean;
}

export interface HistoryOptions {
  /** The agent's. */
  readonly stateDir: string;
  /** How many of the last migrations are shown. */
  readonly last: number;
  readonly isJson: boolean;
}

export interface StatusOptions extends AgentSelection {
  readonly isJson: boolean;
}

export type CancelOptions = AgentSelection;

export interface PostcopyOptions extends AgentSelection {
  /** False: begin it. True: try to make its broken link again. */
  readonly isRecovery: boolean;
}

export interface SetOptions extends AgentSelection {
  /** At least one. */
  readonly parameters: Partial<LiveParameters>;
}

export interface ResolveOptions extends AgentSelection, ResolveRequest {
  readonly isJson: boolean;
}

export interface WhoOwnsOptions extends AgentSelection {
  /** Undefined: whichever the agent holds. */
  readonly guest: string | undefined;
  /** Undefined: the other side of the guest's last hand-over. */
  readonly peer: Address | undefined;
  readonly isJson: boolean;
}

export interface MigrateActions {
  migrate(options: MigrateOptions): Promise<void>;
  plan(options: PlanOptions): Promise<void>;
  dirtyRate(options: DirtyRateOptions): Promise<void>;
  history(options: HistoryOptions): Promise<void>;
  status(options: StatusOptions): Promise<void>;
  cancel(options: CancelOptions): Promise<void>;
  postcopy(options: PostcopyOptions): Promise<void>;
  set(options: SetOptions): Promise<void>;
  resolve(options: ResolveOptions): Promise<void>;
  whoOwns(options: WhoOwnsOptions): Promise<void>;
}

export function addMigrate(program: Command, actions: MigrateActions): void {
  const migrate = program
    .command("migrate")
    .description("ask a running agent to migrate its guest; what is not given is as the agent was started");
  withMigration(withSelection(migrate))
    .addArgument(targetArgument())
    .addOption(modeOption())
    .addOption(guestOption())
    .addOption(reportOption("what was measured"))
    .addOption(jsonOption())
    .action(async (to, given) => {
      await actions.migrate({
        ...selectionOf(given),
        to,
        guest: given.guest,
        parameters: parametersOf(given),
        report: given.report,
        isJson: given.json === true,
      });
    });
  withSelection(program.command("status").description("what a running agent holds and does"))
    .addOption(jsonOption())
    .action((given) => actions.status({ ...selectionOf(given), isJson: given.json === true }));
  withSelection(program.command("cancel").description("cancel the migration in progress; the guest runs on at the source")).action(
    (given) => actions.cancel(selectionOf(given)),
  );
  withSelection(
    program
      .command("postcopy")
      .description("let the guest of a migration with --mode hybrid run at the target now, and fetch what is missing"),
  ).action((given) => actions.postcopy({ ...selectionOf(given), isRecovery: false }));
  withSelection(
    program.command("postcopy-recover").description("try at once to make the broken link of a post-copy migration again"),
  ).action((given) => actions.postcopy({ ...selectionOf(given), isRecovery: true }));
  withSelection(
    program.command("continue").description("let a migration with --pause-before-switchover pause the guest and switch over"),
  ).action((given) => actions.set({ ...selectionOf(given), parameters: { isPauseBeforeSwitchoverOn: false } }));
  withLive(withSelection(program.command("set").description("change the migration in progress; what is not given stays as it is"))).action(
    async (given) => {
      const parameters = liveParametersOf(given);
      if (Object.keys(parameters).length === 0) refuse("nothing to set: give at least one of the options");
      await actions.set({ ...selectionOf(given), parameters });
    },
  );
}

/** What is known of migrations before and after them. */
export function addForecasts(program: Command, actions: MigrateActions): void {
  withMigration(
    withSelection(program.command("plan").description("say what a migration would come to, by measuring guest and link for some seconds")),
  )
    .addArgument(targetArgument())
    .addOption(modeOption())
    .addOption(guestOption())
    .addOption(jsonOption())
    .action(async (to, given) => {
      await actions.plan({ ...selectionOf(given), to, guest: given.guest, parameters: parametersOf(given), isJson: given.json === true });
    });
  withSelection(program.command("dirty-rate").description("how many different pages the guest writes within 0.01 to 3 s"))
    .addOption(guestOption())
    .addOption(jsonOption())
    .action((given) => actions.dirtyRate({ ...selectionOf(given), guest: given.guest, isJson: given.json === true }));
  program
    .command("history")
    .description("what migrations from an agent were expected to come to, and what they came to; the agent need not run")
    .addOption(option("--name <NAME>", "name of the agent on this host", parseName).default("default"))
    .addOption(stateDirOption())
    .addOption(option("--last <COUNT>", "so many of the last ones; 1 to 10000", parseWhole(1, 10_000)).default(20))
    .addOption(jsonOption())
    .action((given) => actions.history({ stateDir: stateDirOf(given), last: given.last, isJson: given.json === true }));
}

/** Who owns a guest, when two agents do not settle it by themselves. */
export function addOwnership(program: Command, actions: MigrateActions): void {
  withSelection(program.command("who-owns").description("what this agent and the other side say of a guest, and what that comes to"))
    .addOption(option("--guest <ID>", "the guest in question (default: the one that the agent holds)", parseName))
    .addOption(
      option(
        "--peer <HOST:PORT>",
        `the other agent; port 1 to 65535, ${DEFAULT_PORT} if left out (default: the other side of the last hand-over)`,
        parsePeer(DEFAULT_PORT),
      ),
    )
    .addOption(jsonOption())
    .action((given) => actions.whoOwns({ ...selectionOf(given), guest: given.guest, peer: given.peer, isJson: given.json === true }));
  withSelection(program.command("resolve").description("end a doubt about a guest by your word; look at `precopy who-owns` first"))
    .addOption(option("--guest <ID>", "the guest in question (required)", parseName).makeOptionMandatory())
    .addOption(
      new Option("--take-back", "the guest is to run here: after COMMIT at the source, or out of the copy that waits at the target"),
    )
    .addOption(new Option("--give-up", "what is here of the guest is to go"))
    .addOption(new Option("--other-side-is-fenced", "your word that the other side cannot run the guest, now or later (default: ask it)"))
    .addOption(
      new Option("--accept-rollback", "with --take-back: run a copy that may lack what the guest did later (default: refuse if so)"),
    )
    .addOption(jsonOption())
    .action(async (given) => {
      const [isTakeBack, isGiveUp] = [given.takeBack === true, given.giveUp === true];
      if (isTakeBack === isGiveUp) refuse(`${isTakeBack ? "not both" : "one is needed"}: --take-back or --give-up`);
      if (isGiveUp && given.acceptRollback === true) refuse("--accept-rollback goes with --take-back: nothing runs after --give-up");
      await actions.resolve({
        ...selectionOf(given),
        guest: given.guest,
        way: isTakeBack ? "take-back" : "give-up",
        isOtherSideFenced: given.otherSideIsFenced === true,
        isRollbackAccepted: given.acceptRollback === true,
        isJson: given.json === true,
      });
    });
}
