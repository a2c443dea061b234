import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { OWNERSHIPS } from "@precopy/protocol";
import type { Ownership, OwnershipStanding } from "@precopy/protocol";
import { buildProgram } from "./args.js";
import type { ResolveOptions } from "./migrate-args.js";
import type { WhoOwnsAnswer } from "./command-socket.js";
import { verdictOf } from "./ownership-verdict.js";

const PEER = { here: "10.0.0.2:4646", there: "10.0.0.1:4646" } as const;
const UNREACHABLE = { code: "ERR_UNREACHABLE", message: "Cannot reach 10.0.0.2:4646" } as const;

const says = (side: "here" | "there", standing: OwnershipStanding, epoch: number, peer: string | null = PEER[side]): Ownership => ({
  guest: "g",
  standing,
  epoch,
  at: "2026-11-20T12:00:01.123Z",
  peer,
});
const answer = (
  here: OwnershipStanding,
  there: OwnershipStanding | null,
  [hereEpoch, thereEpoch]: readonly [number, number] = [5, 5],
  peer?: null,
): WhoOwnsAnswer => ({
  here: says("here", here, hereEpoch, peer),
  there: there === null ? null : says("there", there, thereEpoch, peer),
  thereError: there === null ? UNREACHABLE : null,
});

/** The older side here, neither, there; and before any attempt. */
const EPOCHS = [
  [3, 5],
  [5, 5],
  [5, 3],
  [0, 0],
] as const;
const STANDINGS: readonly (OwnershipStanding | null)[] = [...OWNERSHIPS, null];
/** Every pair of standings, with every relation of their epochs, with and without a peer known. */
const EVERY = OWNERSHIPS.flatMap((here) =>
  STANDINGS.flatMap((there) =>
    EPOCHS.flatMap((epochs) => [
      { here, there, epochs, verdict: verdictOf(answer(here, there, epochs)) },
      { here, there, epochs, verdict: verdictOf(answer(here, there, epochs, null)) },
    ]),
  ),
);
const named = ({ here, there, epochs }: (typeof EVERY)[number]): string =>
  `here ${here} at ${epochs[0]}, there ${there ?? "silent"} at ${epochs[1]}`;

describe("verdictOf, one pair after the other", () => {
  /**
   * Of one hand-over: both sides at one epoch. H here, T there, n nobody, ? unknown; then what is to be given here:
   * t take-back, f other-side-is-fenced, r accept-rollback, g give-up; an exclamation mark: something of that is to be given there.
   */
  const MATRIX = `
            owner in-doubt receiving prepared moved refused given-up gone unknown silent
  owner     ?     H        H         H        H     H       H        H    H       H
  in-doubt  T     ?        ?         n        ?     n       ?        ntr  ?tf     ?tf
  receiving T     ?        ?         ?        ?     ?       ?        n    ?       ?
  prepared  T     n        ?         ?        ?     ?       ntr      ntr  ?tfr    ?tfr
  moved     T     ?        ?         ?        ?     ?       ?        ngf  ?gf     ?gf
  refused   T     n        ?         ?        ?     ?       n        n    ?       ?
  given-up  T     ?        ?         n!       ?     n       ?        n    ?       ?
  gone      T     n!       n         n!       n!    n       n        n    n       ?
  unknown   T     ?!       ?         ?!       ?!    ?       ?        n    ?       ?`;

  const rows = MATRIX.trim()
    .split("\n")
    .map((line) => line.trim().split(/\s+/));
  const letter = { here: "H", there: "T", nobody: "n", unknown: "?" } as const;
  const flag = { "--take-back": "t", "--give-up": "g", "--other-side-is-fenced": "f", "--accept-rollback": "r" } as const;
  const shown = (here: OwnershipStanding, there: OwnershipStanding | null): string => {
    const { owner, text, command } = verdictOf(answer(here, there));
    const flags = Object.entries(flag).flatMap(([word, short]) => (command?.includes(word) === true ? [short] : []));
    return `${letter[owner]}${flags.join("")}${text.includes("`precopy resolve") ? "!" : ""}`;
  };
  const [columns = [], ...lines] = rows;

  it("names every standing, and a silent other side", () => {
    assert.deepEqual([...columns], [...OWNERSHIPS, "silent"]);
    assert.deepEqual(
      lines.map(([standing]) => standing),
      [...OWNERSHIPS],
    );
  });

  for (const [at, here] of OWNERSHIPS.entries())
    it(`${here} here`, () => {
      const expected = lines[at]?.slice(1);
      assert.deepEqual(
        STANDINGS.map((there) => shown(here, there)),
        expected,
      );
    });
});

describe("verdictOf, whatever the two say", () => {
  const check = (title: string, holds: (one: (typeof EVERY)[number]) => boolean): void => {
    it(title, () => {
      for (const one of EVERY) assert.ok(holds(one), `${named(one)}: ${JSON.stringify(one.verdict)}`);
    });
  };

  check("names nobody the owner who does not say so", ({ here, there, verdict: { owner } }) =>
    owner === "here" ? here === "owner" : owner === "there" ? there === "owner" : true,
  );
  check("does not say that nobody has it while somebody says that it is there", ({ here, there, verdict: { owner } }) =>
    here === "owner" || there === "owner" ? owner !== "nobody" : true,
  );
  check("calls one of two owners neither the right one nor nobody", ({ here, there, verdict: { owner, text } }) =>
    here === "owner" && there === "owner" ? owner === "unknown" && text.startsWith("TWO OWNERS") : !text.includes("TWO OWNERS"),
  );
  check("offers no command, nor takes one into its text, while somebody says that the guest runs there", ({ here, there, verdict }) =>
    here === "owner" || there === "owner" ? verdict.command === null && !verdict.text.includes("resolve") : true,
  );
  check("offers to take back only what stands still or waits on that side", ({ here, there, verdict: { text, command } }) => {
    const mayTake = (standing: OwnershipStanding | null): boolean => standing === "in-doubt" || standing === "prepared";
    return (
      (command?.includes("--take-back") !== true || mayTake(here)) &&
      (!text.includes("`precopy resolve --guest g --take-back") || mayTake(there))
    );
  });
  check("takes for ended only a side that has said so: any other has to be fenced first", ({ here, there, verdict: { text, command } }) => {
    const isFenced = (words: string): boolean => !words.includes("precopy resolve") || words.includes("--other-side-is-fenced");
    const hasEnded = (standing: OwnershipStanding | null): boolean => standing === "gone" || standing === "given-up";
    return (command === null || isFenced(command) || hasEnded(there)) && (isFenced(text) || hasEnded(here));
  });
  check("accepts a rollback for a copy that waited, or for what ran on at the target", ({ here, there, verdict: { text, command } }) => {
    const needs = (from: OwnershipStanding, other: OwnershipStanding | null, words: string): boolean =>
      !words.includes("--take-back") || words.includes("--accept-rollback") === (from === "prepared" || other === "gone");
    return (command === null || needs(here, there, command)) && (there === null || needs(there, here, text));
  });
  check("gives up only what is known to have been handed over from there", ({ here, there, verdict: { text, command } }) => {
    const isGiveUp = (words: string | null): boolean => words?.includes("--give-up") === true;
    return (!isGiveUp(command) || here === "moved") && (!isGiveUp(text) || there === "moved");
  });
  check("has at most one command for one side", ({ verdict: { text, command } }) => command === null || !text.includes("`precopy resolve"));
  check("is one line for a person, without an end, that names the guest", ({ verdict: { text } }) =>
    /^[^\n]*\bguest g\b[^\n]*[^.]$/.test(text),
  );
  check("does not print what it does not know", ({ verdict: { text } }) => !/undefined|null|NaN/.test(text));

  it("comes to the same from the other side, and the command stands where it helps", () => {
    const mirrored = { here: "there", there: "here", nobody: "nobody", unknown: "unknown" } as const;
    for (const one of EVERY) {
      if (one.there === null) continue;
      const [hereEpoch, thereEpoch] = one.epochs;
      const ours = verdictOf(answer(one.here, one.there, [hereEpoch, thereEpoch]));
      const theirs = verdictOf(answer(one.there, one.here, [thereEpoch, hereEpoch]));
      assert.equal(theirs.owner, mirrored[ours.owner], named(one));
      if (ours.command !== null && one.here !== one.there)
        assert.ok(theirs.text.endsWith(`. On that side: \`${ours.command}\``) && theirs.command === null, named(one));
    }
  });

  it("offers only commands that the command line takes", async () => {
    const commands = new Set(
      EVERY.flatMap(({ verdict: { text, command } }) => [command ?? [], /`(precopy resolve[^`]*)`/.exec(text)?.[1] ?? []].flat()),
    );
    assert.ok(commands.size >= 4);
    for (const command of commands) {
      const taken: ResolveOptions[] = [];
      const nothing = (): Promise<void> => assert.fail(command);
      const program = buildProgram({
        source: nothing,
        target: nothing,
        migrate: nothing,
        plan: nothing,
        dirtyRate: nothing,
        history: nothing,
        status: nothing,
        cancel: nothing,
        postcopy: nothing,
        set: nothing,
        whoOwns: nothing,
        switch: nothing,
        client: nothing,
        demo: nothing,
        bench: nothing,
        certsInit: nothing,
        certsIssue: nothing,
        resolve: (options) => Promise.resolve(void taken.push(options)),
      });
      await program.parseAsync(command.split(" ").slice(1), { from: "user" });
      assert.equal(taken[0]?.guest, "g", command);
    }
  });
});

describe("verdictOf, in words", () => {
  const text = (...given: Parameters<typeof answer>): string => verdictOf(answer(...given)).text;

  it("says that the source repeats COMMIT to a target that still waits, and nothing else of another hand-over", () => {
    const ours = "nobody runs guest g now: COMMIT has not arrived there. The source here repeats COMMIT by itself";
    assert.equal(text("in-doubt", "prepared"), ours);
    assert.equal(
      text("prepared", "in-doubt"),
      "nobody runs guest g now: COMMIT has not arrived here. The source there repeats COMMIT by itself",
    );
    for (const epochs of [
      [5, 6],
      [6, 5],
    ] as const)
      assert.match(
        text("in-doubt", "prepared", epochs),
        /^what these two say does not settle who owns guest g \(epoch \d here, \d there\)/,
      );
  });

  it("names the host that has to be gone for good before anything is taken back", () => {
    const { text: words, command } = verdictOf(answer("in-doubt", null));
    assert.match(words, /cannot be asked \(ERR_UNREACHABLE\).*If 10\.0\.0\.2:4646 is gone for good/);
    assert.equal(command, "precopy resolve --guest g --take-back --other-side-is-fenced");
    assert.match(verdictOf({ ...answer("in-doubt", null), thereError: null }).text, /the other side was not asked/);
  });

  it("claims the copy of a source that ended, and warns of a newer one", () => {
    assert.equal(verdictOf(answer("prepared", "gone")).command, "precopy resolve --guest g --take-back --accept-rollback");
    assert.doesNotMatch(text("prepared", "gone"), /newer/);
    assert.match(text("prepared", "gone", [5, 7]), /A newer copy may wait at 10\.0\.0\.1:4646: ask there first/);
  });

  it("leaves a copy alone whose source went on, or is another one", () => {
    for (const [there, epochs] of [
      ["moved", [5, 7]],
      ["gone", [5, 3]],
      ["given-up", [5, 7]],
      ["unknown", [5, 7]],
      ["in-doubt", [5, 7]],
    ] as const)
      assert.deepEqual(
        [verdictOf(answer("prepared", there, epochs)).owner, verdictOf(answer("prepared", there, epochs)).command],
        ["unknown", null],
      );
  });

  it("says which of two owners is older, and that they may be one that moved meanwhile", () => {
    assert.match(
      text("owner", "owner", [3, 5]),
      /^TWO OWNERS of guest g: epoch 3 here, epoch 5 there\. Ask again.* the older one is here: end that agent$/,
    );
    assert.match(text("owner", "owner", [5, 3]), /the older one is there: end that agent$/);
    assert.match(text("owner", "owner", [5, 5]), /booted twice: end one of them$/);
  });

  it("is not alarmed by an attempt in progress or aborted, and is by an owner that was overtaken", () => {
    for (const there of ["receiving", "prepared", "refused", "unknown", "gone"] as const)
      assert.equal(verdictOf(answer("owner", there, [4, 5])).owner, "here", there);
    for (const there of ["in-doubt", "moved", "given-up"] as const) {
      assert.equal(verdictOf(answer("owner", there, [5, 4])).owner, "here", there);
      assert.equal(verdictOf(answer("owner", there, [4, 5])).owner, "unknown", there);
      assert.match(text("owner", there, [4, 5]), /a newer one may run elsewhere/);
    }
  });

  it("knows the end of a guest that was never handed over from one that was", () => {
    const alone = { here: says("here", "gone", 1, null), there: null, thereError: null };
    assert.equal(verdictOf(alone).owner, "nobody");
    assert.equal(verdictOf({ ...alone, here: says("here", "gone", 2) }).owner, "unknown");
  });

  it("doubts the id of a guest that neither side has met", () => {
    assert.equal(text("unknown", "unknown", [0, 0]), "neither side has ever met guest g: is that its id?");
  });
});
