import type { Ownership, OwnershipStanding } from "@precopy/protocol";
import type { WhoOwnsAnswer } from "./command-socket.js";

/** What two agents' words on one guest come to. */
export interface OwnershipVerdict {
  /** unknown: these two cannot tell, or a third one has it. */
  readonly owner: "here" | "there" | "nobody" | "unknown";
  /** Who runs it, what will happen by itself, and what helps at the other side if nothing does here. One line without an end. */
  readonly text: string;
  /** To be given here by somebody who means it: it makes an owner, or clears the way for one. Null if there is none. */
  readonly command: string | null;
}

interface Side extends Ownership {
  readonly side: "here" | "there";
}

/** An operator's word, and on which side it is to be given. */
interface Remedy {
  readonly at: Side;
  readonly flags: string;
}

interface Finding {
  readonly owner: Side | "nobody" | "unknown";
  readonly text: string;
  readonly remedy?: Remedy;
}

const finding = (owner: Finding["owner"], text: string, remedy?: Remedy): Finding => ({
  owner,
  text,
  ...(remedy !== undefined && { remedy }),
});
const nobody = (text: string, remedy?: Remedy): Finding => finding("nobody", text, remedy);
const unknown = (text: string, remedy?: Remedy): Finding => finding("unknown", text, remedy);

/** At the source in doubt: the target may still run the guest. */
const takeBack = (at: Side): Remedy => ({ at, flags: "--take-back --other-side-is-fenced" });
/** Either copy, where the other side has said that it ended there: nothing is left that could run twice, but the copy may be older. */
const takeOlder = (at: Side): Remedy => ({ at, flags: "--take-back --accept-rollback" });
/** At the prepared target: the source may still run the guest, and may have run on after the copy was made. */
const claim = (at: Side): Remedy => ({ at, flags: "--take-back --other-side-is-fenced --accept-rollback" });
/** At a former source: a new guest of this id may be booted then. */
const letGo = (at: Side): Remedy => ({ at, flags: "--give-up --other-side-is-fenced" });

const peerOf = ({ peer }: Ownership): string => peer ?? "the other side of its last hand-over";
const newer = (a: Side, b: Side): Side => (b.epoch > a.epoch ? b : a);

/** Neither has it, as far as they say, and they do not speak of a hand-over between the two. */
const unsettled = (a: Side, b: Side): Finding =>
  unknown(
    `what these two say does not settle who owns guest ${a.guest} (epoch ${a.epoch} ${a.side}, ${b.epoch} ${b.side}): ` +
      `ask ${peerOf(newer(a, b))}`,
  );

/** `ended` went on to epochs that `a` never met: whoever was offered the guest last may have more of it. */
const newerCopy = (a: Side, ended: Side): string =>
  ended.epoch > a.epoch ? `. A newer copy may wait at ${peerOf(ended)}: ask there first` : "";

/** `a` says that it owns the guest. */
function owned(a: Side, b: Side): Finding {
  const runs = `guest ${a.guest} runs ${a.side}`;
  // Whoever decided a hand-over owned the guest then: this side should have let go of it before.
  const isOvertaken = b.epoch > a.epoch && (b.standing === "in-doubt" || b.standing === "moved" || b.standing === "given-up");
  if (isOvertaken)
    return unknown(
      `${runs} at epoch ${a.epoch}, but ${b.side} it was handed over at epoch ${b.epoch}: a newer one may run elsewhere. Ask again, then ` +
        `ask ${peerOf(b)}`,
    );
  switch (b.standing) {
    case "owner": {
      const older = a.epoch === b.epoch ? undefined : newer(a, b) === a ? b : a;
      const what = older === undefined ? "it was booted twice: end one of them" : `the older one is ${older.side}: end that agent`;
      return unknown(
        `TWO OWNERS of guest ${a.guest}: epoch ${a.epoch} ${a.side}, epoch ${b.epoch} ${b.side}. Ask again, for it may have moved ` +
          `between the two answers. If both say so again, ${what}`,
      );
    }
    case "in-doubt":
      return finding(a, `${runs}; the source ${b.side} hears so when it asks, and lets go by itself`);
    case "prepared":
      return finding(a, `${runs}; a copy waits ${b.side} for COMMIT or for an end`);
    case "receiving":
      return finding(a, `${runs}; a copy is on its way ${b.side}`);
    case "moved":
    case "given-up":
    case "gone":
    case "refused":
    case "unknown":
      return finding(a, runs);
  }
}

/** A source in doubt does not say whether it still has the guest's memory; its agent finds out when it is asked to take it back. */
const takable = ({ side }: Side): string => `it can be taken back, or only given up if the agent ${side} was started anew since`;

/** `a` is a source with an unanswered COMMIT; `b` is its target if both speak of one epoch, or ran the guest after that. */
function doubted(a: Side, b: Side): Finding {
  const { guest } = a;
  const isTarget = a.epoch === b.epoch;
  if (b.standing === "prepared" && isTarget)
    return nobody(`nobody runs guest ${guest} now: COMMIT has not arrived ${b.side}. The source ${a.side} repeats COMMIT by itself`);
  if (b.standing === "refused" && isTarget)
    return nobody(
      `nobody runs guest ${guest} now: ${b.side} it was refused for good. The source ${a.side} hears so when it asks, and takes it back ` +
        `by itself`,
    );
  if (b.standing === "gone" && b.epoch >= a.epoch)
    return nobody(
      `nobody runs guest ${guest}: it ended ${b.side} with its agent. What stands still ${a.side} is as old as the hand-over` +
        newerCopy(a, b),
      takeOlder(a),
    );
  if (b.standing === "moved" && b.epoch > a.epoch)
    return unknown(`guest ${guest} arrived ${b.side} and moved on to ${peerOf(b)}: ask there. The doubt ${a.side} ends by itself`);
  if (b.standing === "unknown" && b.epoch <= a.epoch)
    return unknown(
      `guest ${guest} is in doubt: ${b.side} it is not known, which is no refusal. The source ${a.side} asks on by itself. ` +
        `If ${peerOf(a)} is gone for good, ${takable(a)}`,
      takeBack(a),
    );
  return unknown(`${unsettled(a, b).text}. The source ${a.side} asks on by itself`);
}

/** A whole copy waits at `a` for COMMIT; `b` is its source if both speak of one epoch, or went on to newer ones. */
function waiting(a: Side, b: Side): Finding {
  const { guest } = a;
  if (b.standing === "given-up" && b.epoch === a.epoch)
    return nobody(`nobody runs guest ${guest}: it was given up ${b.side}. The copy that waits ${a.side} can run`, takeOlder(a));
  if (b.standing === "gone" && b.epoch >= a.epoch)
    return nobody(
      `nobody runs guest ${guest}: it ended ${b.side} with its agent. The copy that waits ${a.side} can run${newerCopy(a, b)}`,
      takeOlder(a),
    );
  if (b.standing === "moved" && b.epoch > a.epoch)
    return unknown(
      `guest ${guest} moved from ${b.side} to ${peerOf(b)}: ask there. The copy ${a.side} is of an older attempt: \`precopy cancel\` ` +
        `discards it`,
    );
  if (b.standing === "unknown" && b.epoch <= a.epoch)
    return unknown(
      `a copy of guest ${guest} waits ${a.side} for COMMIT; ${b.side} it is not known. If ${peerOf(a)} is gone for good, the copy can run`,
      claim(a),
    );
  return unsettled(a, b);
}

/** A part of the guest is at `a`: nothing that could run. */
function arriving(a: Side, b: Side): Finding {
  const dropped = `What arrived ${a.side} is discarded by itself`;
  if (b.standing === "gone" && b.epoch >= a.epoch)
    return nobody(`nobody runs guest ${a.guest}: it ended ${b.side} with its agent, before all of it was ${a.side}. ${dropped}`);
  if (b.standing === "moved" && b.epoch > a.epoch)
    return unknown(`guest ${a.guest} moved from ${b.side} to ${peerOf(b)}: ask there. ${dropped}`);
  return unsettled(a, b);
}

/** `a` handed the guest over, and that was confirmed; to `b`, unless `b` speaks of older epochs only. */
function handedOver(a: Side, b: Side): Finding {
  const { guest } = a;
  if (b.standing === "moved" && a.epoch !== b.epoch)
    return unknown(`guest ${guest} was ${a.side} and ${b.side}, and moved on to ${peerOf(newer(a, b))}: ask there`);
  if (b.standing === "gone" && b.epoch >= a.epoch)
    return nobody(
      `nobody runs guest ${guest}: it moved from ${a.side} to ${b.side}, and ended there with its agent${newerCopy(a, b)}. ` +
        `To boot a new one ${a.side}, give it up first`,
      letGo(a),
    );
  if (b.standing === "unknown" && b.epoch <= a.epoch)
    return unknown(
      `guest ${guest} moved from ${a.side} to ${peerOf(a)}, which confirmed it; ${b.side} it is not known. Only if it ended there: ` +
        `to boot a new one ${a.side}, give it up first`,
      letGo(a),
    );
  return unsettled(a, b);
}

/** It is on neither side, nor on its way there. */
function nowhere(a: Side, b: Side): Finding {
  const { guest } = a;
  const left = "nothing of it is left on these two: boot a new one";
  if (a.standing === "given-up") {
    const isAnswered = (b.standing === "gone" && b.epoch >= a.epoch) || (b.standing === "refused" && b.epoch === a.epoch);
    return isAnswered ? nobody(`nobody runs guest ${guest}: it was given up ${a.side}, and ${left}`) : unsettled(a, b);
  }
  if (a.standing === "gone" && (b.standing === "gone" || b.epoch <= a.epoch)) {
    const { side } = b.standing === "gone" ? newer(a, b) : a;
    return nobody(`nobody runs guest ${guest}: it ended ${side} with its agent, and ${left}`);
  }
  if (a.epoch === 0 && b.epoch === 0) return unknown(`neither side has ever met guest ${guest}: is that its id?`);
  return unsettled(a, b);
}

/** The more a standing has to say of the guest the lower; `judge` wants that side first. */
const RANK = {
  owner: 0,
  "in-doubt": 1,
  prepared: 2,
  receiving: 3,
  moved: 4,
  "given-up": 5,
  gone: 6,
  refused: 7,
  unknown: 8,
} as const satisfies Record<OwnershipStanding, number>;

function judge(a: Side, b: Side): Finding {
  switch (a.standing) {
    case "owner":
      return owned(a, b);
    case "in-doubt":
      return doubted(a, b);
    case "prepared":
      return waiting(a, b);
    case "receiving":
      return arriving(a, b);
    case "moved":
      return handedOver(a, b);
    case "given-up":
    case "gone":
    case "refused":
    case "unknown":
      return nowhere(a, b);
  }
}

/** The other side said nothing. */
function judgeAlone(a: Side, error: WhoOwnsAnswer["thereError"]): Finding {
  const { guest, peer, standing } = a;
  const silent = `the other side ${error === null ? "was not asked" : `cannot be asked (${error.code})`}`;
  switch (standing) {
    case "owner":
      return finding(a, `guest ${guest} runs here${error === null ? "" : `; ${silent}`}`);
    case "in-doubt":
      return unknown(
        `guest ${guest} is in doubt: COMMIT is out, and ${silent}. The source asks on by itself. If ${peerOf(a)} is gone for good, ` +
          takable(a),
        takeBack(a),
      );
    case "prepared":
      return unknown(
        `a copy of guest ${guest} waits here for COMMIT, and ${silent}. If ${peerOf(a)} is gone for good, the copy can run`,
        claim(a),
      );
    case "receiving":
      return unknown(
        `guest ${guest} is on its way here, and ${silent}. Until COMMIT it is owned there; if the source stays silent, what arrived is ` +
          `discarded by itself`,
      );
    case "moved":
      return unknown(
        `guest ${guest} moved to ${peerOf(a)}, which confirmed it; now ${silent}. Only if it ended there: to boot a new one here, give it ` +
          `up first`,
        letGo(a),
      );
    case "gone":
      return error === null && peer === null
        ? nobody(`nobody runs guest ${guest}: it ended here with its agent. Boot a new one`)
        : unknown(`guest ${guest} ended here with its agent, and ${silent}: a copy may wait at ${peerOf(a)}`);
    case "given-up":
    case "refused":
      return unknown(
        `guest ${guest} was ${standing === "refused" ? "refused" : "given up"} here, and ${silent}: it may run at ${peerOf(a)}`,
      );
    case "unknown":
      return unknown(
        error === null
          ? `guest ${guest} is not known here: is that its id? \`--peer HOST:PORT\` asks another agent`
          : `guest ${guest} is not known here, and ${silent}`,
      );
  }
}

/** No command is offered where somebody says that the guest runs, nor where waiting is enough. */
export function verdictOf({ here, there, thereError }: WhoOwnsAnswer): OwnershipVerdict {
  const ours: Side = { ...here, side: "here" };
  const theirs: Side | undefined = there === null ? undefined : { ...there, side: "there" };
  const found = (): Finding => {
    if (theirs === undefined) return judgeAlone(ours, thereError);
    return RANK[ours.standing] <= RANK[theirs.standing] ? judge(ours, theirs) : judge(theirs, ours);
  };
  const { owner, text, remedy } = found();
  const command = remedy === undefined ? null : `precopy resolve --guest ${here.guest} ${remedy.flags}`;
  const isForThere = remedy?.at.side === "there";
  return {
    owner: typeof owner === "string" ? owner : owner.side,
    text: isForThere ? `${text}. On that side: \`${command}\`` : text,
    command: isForThere ? null : command,
  };
}
