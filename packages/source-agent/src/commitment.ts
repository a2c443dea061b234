import type { SourceHandover } from "@precopy/engine";
import { ACTIVE_TIMEOUT_MS, ARBITRATION_AFTER_MS, ASK_AGAIN_MS, MigrationError, parseAddress } from "@precopy/protocol";
import type { ControlMessage, OwnerAnswer } from "@precopy/protocol";
import { ControlChannel } from "@precopy/transport";
import type { Security } from "@precopy/transport";
import type { Attempt } from "./control-link.js";

/** The arbiter's word on one attempt. */
export interface Arbitration {
  /** Takes the guest for this side, one epoch above the attempt's. False: somebody else has it. `hasRefused`: the target said it never will. */
  takeBack(hasRefused: boolean): Promise<boolean>;
}

export interface CommitmentPorts {
  /** HOST:PORT of the target; what a journal says may make no sense. */
  readonly to: string;
  /** What the target is shown. */
  readonly security: Security | undefined;
  readonly attempt: Attempt;
  readonly handover: SourceHandover;
  readonly arbitration: Arbitration | undefined;
  /** Since the guest was paused. */
  elapsedMs(): number;
  /** No answer, and why; told once for each reason. */
  onDoubt(reason: MigrationError): void;
  /** Every message of a channel of this attempt that no question waits for. */
  onMessage(message: ControlMessage): void;
}

export interface Resolved {
  readonly answer: OwnerAnswer | "unreachable";
  /** True if the operator's word, and not the target's, decided. */
  readonly wasForced: boolean;
}

const silence = (what: string) => (): MigrationError => new MigrationError("ERR_PEER_DEAD", `The target did not answer ${what}`);

/**
 * What the source says after COMMIT is decided, until it knows who owns the guest: sends COMMIT, asks when there is no answer, on a new
 * connection if need be, and sends COMMIT again to a target that is still prepared. No timer ever resumes the guest here.
 */
export class Commitment {
  readonly #ports: CommitmentPorts;
  #control: ControlChannel | undefined;
  #abandoned: MigrationError | undefined;
  #wake: () => void = () => {};
  #lastDoubt = "";
  /** One question at a time: the loop's, or an operator's. */
  #turn: Promise<unknown> = Promise.resolve();

  /** @param control on which the target said PREPARED; undefined after a restart. */
  constructor(ports: CommitmentPorts, control: ControlChannel | undefined) {
    this.#ports = ports;
    this.#control = control;
  }

  /** The channel that the last answer came on. */
  get control(): ControlChannel | undefined {
    return this.#control;
  }

  /** Resolves when the hand-over is over. @throws {MigrationError} ERR_IN_DOUBT once it was abandoned. */
  async run(): Promise<void> {
    const { handover, arbitration } = this.#ports;
    const startedAt = performance.now();
    // Looked at in its turn: an operator who came first may have ended the hand-over, and then no COMMIT goes out.
    await this.#inTurn(async () => {
      if (handover.state.phase === "committing") await this.#carryOut();
    });
    while (handover.isOpen) {
      await this.#rest();
      if (this.#abandoned !== undefined) throw this.#abandoned;
      await this.#inTurn(async () => {
        if (handover.isOpen) await this.#ask(false);
      });
      // Its target is silent, and the arbiter knows whether it ever became the owner.
      const isOverdue = performance.now() - startedAt > ARBITRATION_AFTER_MS;
      if (arbitration !== undefined && isOverdue && handover.state.hasImage) await this.#inTurn(() => this.#arbitrate(arbitration));
    }
  }

  /** The process ends while the target has not answered: stops asking. */
  abandon(): void {
    this.#abandoned = new MigrationError("ERR_IN_DOUBT", `The agent ended before ${this.#ports.to} answered`);
    this.#control?.close(this.#abandoned);
    this.#wake();
  }

  /**
   * The operator wants the guest back: asks, and revokes COMMIT from a target that has not taken it yet. If neither ends the doubt,
   * `mayForce` says whether the operator's word does.
   */
  takeBack(mayForce: (answer: OwnerAnswer | "unreachable") => void): Promise<Resolved> {
    return this.#decide(true, "fenced", mayForce);
  }

  /** The operator ends what is here: only if the target runs the guest, or `mayForce` allows it. */
  giveUp(mayForce: (answer: OwnerAnswer | "unreachable") => void): Promise<Resolved> {
    return this.#decide(false, "give-up", mayForce);
  }

  #decide(isRevoking: boolean, event: "fenced" | "give-up", mayForce: (answer: OwnerAnswer | "unreachable") => void): Promise<Resolved> {
    return this.#inTurn(async () => {
      const { handover, arbitration } = this.#ports;
      const answer = handover.isOver ? "unreachable" : await this.#ask(isRevoking && handover.state.hasImage);
      const wasForced = !handover.isOver;
      if (wasForced) {
        mayForce(answer); // throws what is missing
        // Else the guest would run by the operator's word, and stop at the next look at the arbiter's book.
        if (event === "fenced" && arbitration !== undefined && !(await arbitration.takeBack(true)))
          throw new MigrationError("ERR_ARBITER", "By the arbiter's book somebody else owns the guest");
        handover.step(event);
      }
      this.#wake();
      return { answer, wasForced };
    });
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#turn.then(work);
    this.#turn = turn.catch(() => {});
    return turn;
  }

  async #rest(): Promise<void> {
    if (this.#abandoned !== undefined) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ASK_AGAIN_MS);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** Sends COMMIT if a step asked for it, and waits a moment for ACTIVE. */
  async #carryOut(): Promise<void> {
    const { handover } = this.#ports;
    const control = this.#control;
    if (!handover.takeCommit() || control === undefined) return;
    try {
      const active = control.expect(["active"], ACTIVE_TIMEOUT_MS, silence("COMMIT"));
      control.send({ type: "commit", epoch: this.#ports.attempt.epoch, elapsedMs: this.#ports.elapsedMs() });
      await active;
      handover.step("active");
    } catch (thrown) {
      // Whatever happened, a peer that speaks of a failure included: only `owner` tells.
      this.#doubt(MigrationError.from(thrown));
    }
  }

  /** One question to the target, and the step that its answer means. @param isRevoking COMMIT is called back if it was not served yet. */
  async #ask(isRevoking: boolean): Promise<OwnerAnswer | "unreachable"> {
    const { handover } = this.#ports;
    let control = this.#control;
    try {
      if (control === undefined || control.closed !== undefined) control = await this.#connect();
      let answer = await this.#question(control);
      this.#adopt(control);
      if (answer === "prepared" && isRevoking) {
        control.send({ type: "abort", code: "ERR_CANCELLED", message: "Taken back by the operator of the source" });
        answer = await this.#questionAgain(control);
      } else if (answer === "prepared") {
        handover.step("prepared");
        await this.#carryOut();
        return answer;
      }
      await this.#take(answer);
      return answer;
    } catch (error) {
      if (control !== this.#control) control?.close(MigrationError.from(error));
      this.#doubt(MigrationError.from(error));
      return "unreachable";
    }
  }

  #connect(): Promise<ControlChannel> {
    const { to, security } = this.#ports;
    return ControlChannel.connect(parseAddress(to), undefined, security);
  }

  async #question(control: ControlChannel): Promise<OwnerAnswer> {
    const { attempt } = this.#ports;
    const answered = control.expect(["owner", "active"], ACTIVE_TIMEOUT_MS, silence("the question who owns the guest"));
    control.send({ type: "ask", ...attempt, hasImage: this.#ports.handover.state.hasImage });
    const answer = await answered;
    return answer.type === "active" ? "active" : answer.phase;
  }

  /** After `abort` a target closes the channel when it has let go. */
  async #questionAgain(control: ControlChannel): Promise<OwnerAnswer> {
    try {
      return await this.#question(control);
    } catch {
      const fresh = await this.#connect();
      this.#adopt(fresh);
      return this.#question(fresh);
    }
  }

  async #take(answer: OwnerAnswer): Promise<void> {
    const { handover, arbitration } = this.#ports;
    const ranThere = answer === "active" || (answer === "gone" && !handover.state.hasImage); // then there is nothing left to decide
    if (ranThere) return handover.step("active");
    if (answer !== "discarded") return handover.step("unknown"); // gone or unknown: the agent there was started anew, which refuses nothing
    // Nobody else may own it by the arbiter's book before it runs here again.
    if (arbitration !== undefined && handover.state.hasImage && !(await arbitration.takeBack(true)))
      throw new MigrationError("ERR_ARBITER", "The target refused, and the arbiter has given the guest to somebody else");
    handover.step("discarded");
  }

  async #arbitrate(arbitration: Arbitration): Promise<void> {
    const { handover } = this.#ports;
    if (!handover.isOpen) return;
    try {
      if (await arbitration.takeBack(false)) handover.step("fenced");
      else
        this.#doubt(new MigrationError("ERR_IN_DOUBT", "The arbiter says that the guest is the target's, and the target does not answer"));
    } catch (error) {
      this.#doubt(MigrationError.from(error));
    }
  }

  #adopt(control: ControlChannel): void {
    if (control === this.#control) return;
    this.#control?.close(new MigrationError("ERR_LINK_LOST", "Another control channel took its place"));
    this.#control = control;
    control.onMessage = (message) => this.#ports.onMessage(message);
  }

  #doubt(reason: MigrationError): void {
    const { handover, onDoubt } = this.#ports;
    if (!handover.isOpen) return; // it runs at the target, in post-copy: the link that serves it knows better
    handover.step("silence");
    if (reason.message === this.#lastDoubt) return; // once for each reason, not once a second
    this.#lastDoubt = reason.message;
    onDoubt(reason);
  }
}
