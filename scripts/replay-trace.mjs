// Replays what a run of docs/model/handover.pml printed against the real reducers: after each step phase and epoch must be equal, every
// effect must be the one that is owed next, and every answer must be what memory or journal say.
import { admitted, offer, ownerAnswer, recoverSource, standingOf, stepSource, stepTarget } from "@precopy/protocol";

/** What an agent answers when the attempt is not in its memory. */
const BY_STANDING = { refused: "discarded", gone: "gone", unknown: "unknown" };

class Side {
  state;
  owed = [];
  journal = [];
  boot = 1;

  constructor(step) {
    this.step = step;
  }

  write(decision, epoch) {
    this.journal.push({ at: "", decision, epoch, boot: String(this.boot) });
  }

  take({ state, decide, effects }) {
    if (this.owed.length > 0) throw new Error(`${this.owed.length} effects are still owed`);
    this.state = state;
    this.owed = [...effects];
    if (decide !== undefined) this.write(decide, state.epoch);
  }

  effect(kind, what) {
    const next = this.owed.shift();
    const isSame =
      next !== undefined &&
      (kind === "failed"
        ? next.effect === "journal"
        : next.effect === kind && (kind === "free" || [next.message, next.decision, String(next.epoch)].includes(what)));
    if (!isSame) throw new Error(`effect ${kind} ${what ?? ""}; owed is ${JSON.stringify(next)}`);
    if (kind === "journal") this.write(next.decision, next.epoch);
  }

  end() {
    this.state = undefined;
    this.owed = [];
  }

  get standing() {
    return standingOf(this.journal, String(this.boot));
  }
}

const words = (line) => line.split(" ").map((word) => word.replace(/_$/, "").replaceAll("_", "-"));
const expectEqual = (is, should, what) => {
  if (is !== should) throw new Error(`${what} is ${is} here, ${should} in the trace`);
};

/** @param lines "source event prepared committing 2", ... @param onStep is told every step, and where it leads. */
export function replay(lines, onStep = () => {}) {
  const source = new Side(stepSource);
  const target = new Side(stepTarget);
  let attempt = 0;
  source.write("booted", 1);
  lines.forEach((line, at) => {
    const [who, what, ...rest] = words(line);
    const side = who === "source" ? source : target;
    const expectState = (phase, epoch) => {
      expectEqual(side.state?.phase ?? "none", phase, "phase");
      expectEqual(side.state?.epoch ?? 0, Number(epoch), "epoch");
    };
    try {
      switch (what) {
        case "offer":
          side.take(offer(Number(rest[0]), Number(rest[2])));
          return expectState(rest[1], rest[2]);
        case "admitted":
          attempt = Number(rest[1]);
          side.take({ state: admitted(attempt), effects: [] });
          return expectState(...rest);
        case "event": {
          const [event, phase, epoch] = rest;
          const before = side.state;
          const step = side.step(before, event);
          side.take(step);
          onStep(who, before.phase, event, step.state.phase);
          return expectState(phase, epoch);
        }
        case "effect":
          return side.effect(...rest);
        case "answer": {
          const { standing, last } = side.standing;
          const isKnown = side.state !== undefined && attempt === Number(rest[1]);
          const ofAttempt = last?.epoch === Number(rest[1]) + (last?.decision === "claimed" ? 1 : 0);
          return expectEqual(isKnown ? ownerAnswer(side.state) : ofAttempt ? BY_STANDING[standing] : "unknown", rest[0], "answer");
        }
        case "crash":
          return side.end();
        case "host-crash":
          side.boot++;
          return side.end();
        case "forgets":
          side.journal.pop();
          return;
        case "restart": {
          const { standing, last } = side.standing;
          if (who === "source" && standing === "in-doubt") side.state = recoverSource(last.epoch);
          return expectState(...rest);
        }
        case "boot":
          side.end();
          side.write("booted", Number(rest[0]));
          side.owed.push({ effect: "run", epoch: Number(rest[0]) });
          return;
        default:
          throw new Error("unknown line");
      }
    } catch (cause) {
      throw new Error(`line ${at + 1}, ${line}: ${cause.message}`, { cause });
    }
  });
}
