import { isServing, sourceMayAbort, stepSource } from "@precopy/protocol";
import type { Decision, HandoverEffect, MigrationError, SourceEvent, SourcePhase, SourceState } from "@precopy/protocol";

export interface HandoverRecord {
  /** Writes a decision down. If this throws, the step that needed it does not happen. */
  decide(decision: Decision, epoch: number): void;
  onPhase(phase: SourcePhase): void;
}

/** The source's state machine in motion: writes decisions down before they hold, and keeps what a step asks for until somebody carries it out. */
export class SourceHandover {
  readonly #record: HandoverRecord;
  #state: SourceState;
  #owed: HandoverEffect[] = [];

  constructor(state: SourceState, record: HandoverRecord) {
    this.#state = state;
    this.#record = record;
  }

  get state(): SourceState {
    return this.#state;
  }

  /** @throws {MigrationError} ERR_ILLEGAL_TRANSITION, and what `decide` throws: the state is then as it was. */
  step(event: SourceEvent): void {
    const { state, decide, effects } = stepSource(this.#state, event);
    if (decide !== undefined) this.#record.decide(decide, state.epoch);
    const isNew = state.phase !== this.#state.phase;
    this.#state = state;
    this.#owed.push(...effects);
    if (isNew) this.#record.onPhase(state.phase);
  }

  /** Ends the attempt if COMMIT is not decided; else only an answer can. */
  abort({ code }: MigrationError): void {
    if (sourceMayAbort(this.#state.phase)) this.step(code === "ERR_CANCELLED" ? "cancel" : "fail");
  }

  /** True if a COMMIT that a step asked for was not sent yet and may still go out. Takes nothing else: the rest is whoever ends the hand-over's. */
  takeCommit(): boolean {
    const isCommit = (effect: HandoverEffect): boolean => effect.effect === "send" && effect.message === "commit";
    const isOwed = this.#owed.some(isCommit);
    this.#owed = this.#owed.filter((effect) => !isCommit(effect));
    return isOwed && !this.isOver;
  }

  /** What the steps so far asked for and nobody took yet, in order. */
  takeEffects(): readonly HandoverEffect[] {
    return this.#owed.splice(0);
  }

  /** Nothing but an end of the process changes it any more. */
  get isOver(): boolean {
    return !this.isOpen && !isServing(this.#state.phase);
  }

  /** Nobody knows yet who will own the guest in the end. */
  get isOpen(): boolean {
    const { phase } = this.#state;
    return phase === "setup" || phase === "active" || phase === "device" || phase === "committing" || phase === "in-doubt";
  }
}
