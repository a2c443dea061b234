import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { DEFAULT_PARAMETERS, MigrationError, PAGE_BYTES } from "@precopy/protocol";
import type { MigrationParameters } from "@precopy/protocol";
import { EPOCH, FakePorts, pagesOf } from "./fake-ports.js";
import type { Call } from "./fake-ports.js";
import { Migration } from "./migration.js";
import type { SwitchResult } from "./migration.js";

const span = (pages: number): number[] => Array.from({ length: pages }, (_, at) => at);

function migrationWith(
  ports: FakePorts,
  mode: MigrationParameters["mode"] = "precopy",
  more: Partial<MigrationParameters> = {},
): Migration {
  return new Migration(
    { pages: 400, parameters: () => ({ ...DEFAULT_PARAMETERS, mode, ...more }), acceptedAtMs: 900 },
    ports,
    ports.machine,
  );
}
/** Two rounds of 50 and 10 ms: the second leaves as much as the first, so a third is not worth it. */
function busyPorts(): FakePorts {
  const ports = new FakePorts();
  ports.costMs = { start: 4, collect: 1, pause: 2, sendLast: 3, prepare: 5, commit: 6 };
  ports.pageMs = 0.125;
  ports.finds = [span(400), span(80), span(80), [398, 399]];
  return ports;
}
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
const failureOf = (running: Promise<SwitchResult>): Promise<MigrationError> =>
  running.then(() => assert.fail("it completed"), MigrationError.from);

/** Stands still in the nth call of a name until it is let go, one way or the other. */
class Hold {
  readonly reached: Promise<void>;
  #reach: () => void = () => {};
  #leave: (error: Error | undefined) => void = () => {};

  constructor(ports: FakePorts, call: Call, nth = 1) {
    this.reached = new Promise((resolve) => {
      this.#reach = resolve;
    });
    const left = new Promise<void>((resolve, reject) => {
      this.#leave = (error) => (error === undefined ? resolve() : reject(error));
    });
    ports.during = (at, count) => {
      if (at !== call || count !== nth) return;
      this.#reach();
      return left;
    };
  }

  goOn(): void {
    this.#leave(undefined);
  }
  throw(error: Error): void {
    this.#leave(error);
  }
}

describe("a migration that nothing disturbs", () => {
  it("goes from setup to completed through active, device and committing, one port after the other", async () => {
    const ports = busyPorts();
    const migration = migrationWith(ports);
    assert.equal(ports.machine.state.phase, "setup");
    await migration.run();
    assert.equal(ports.machine.state.phase, "completed");
    assert.deepEqual(ports.phases, ["active", "device", "committing", "completed"]);
    const order = [
      "start",
      "sendRound",
      "collect",
      "sendRound",
      "collect",
      "pause",
      "collect",
      "sendLast",
      "tell",
      "prepare",
      "decide",
      "commit",
    ];
    assert.deepEqual(
      ports.calls.map((call) => call.split(" ")[0]),
      order,
    );
  });

  it("sends in the pause what the last round left and what was dirtied since, each page once", async () => {
    const ports = busyPorts();
    await migrationWith(ports).run();
    assert.ok(ports.calls.includes(`sendLast 3 ${JSON.stringify([...span(80), 398, 399])}`), ports.calls.join("; "));
  });

  it("measures a downtime whose parts add up, and a total and a setup time from the command on", async () => {
    const ports = busyPorts();
    const result = await migrationWith(ports).run();
    assert.deepEqual(result.breakdown, { pause: 2, collect: 1, transfer: 3, prepare: 5, commit: 6 });
    assert.equal(result.downtimeMs, 17);
    assert.equal(result.setupMs, 104, "100 before it began, 4 to start the log");
    assert.equal(result.totalMs, 100 + 4 + (50 + 1) + (10 + 1) + 17);
    assert.equal(result.downtimeBytes, 82 * PAGE_BYTES);
    assert.equal(result.expectedDowntimeMs, ports.rounds.at(-1)?.expectedDowntimeMs);
  });

  it("reports the last round after the others, with the guest paused", async () => {
    const ports = busyPorts();
    await migrationWith(ports).run();
    assert.deepEqual(
      ports.rounds.map(({ round }) => round),
      [1, 2, 3],
    );
    const last = ports.rounds.at(-1);
    assert.deepEqual(
      [last?.decision, last?.dirtyPages, last?.startMs, last?.durationMs, last?.collectMs],
      ["last round: guest paused", 82, 166, 11, 1],
    );
  });

  it("whose time is up with --timeout-action force pauses after the round under way, and completes", async () => {
    const ports = new FakePorts();
    ports.costMs = { sendRound: 5000 };
    ports.finds = Array.from({ length: 50 }, () => span(400));
    const migration = migrationWith(ports, "precopy", { timeoutMs: 7000, timeoutAction: "force" });
    ports.onRoundDone = ({ round }) => {
      if (round === 1) migration.timeOut();
    };
    await migration.run();
    assert.equal(ports.machine.state.phase, "completed");
    assert.equal(ports.rounds.length, 3, "two and the last");
  });

  it("with postcopy tells what will be missing while the guest runs, again for what it writes meanwhile, and pauses for its devices' pages", async () => {
    const ports = new FakePorts();
    ports.finds = [span(100), [50, 200, 201], [300, 50]];
    const { missing } = await migrationWith(ports, "postcopy").run();
    assert.deepEqual(ports.calls, [
      `start ${JSON.stringify(span(100))}`,
      `discard ${JSON.stringify(span(100))}`,
      "collect [50,200,201]",
      "pause",
      "collect [300,50]",
      "tellDiscard [200,201,300]",
      "sendLast 1 [0,1]",
      "tell",
      "prepare",
      "decide committed",
      "commit",
    ]);
    assert.deepEqual(ports.phases, ["device", "committing", "postcopy-active"]);
    assert.deepEqual(missing && pagesOf(missing), [...span(100).slice(2), 200, 201, 300]);
  });

  it("with hybrid goes to post-copy where rounds lead nowhere, and what they left is missing", async () => {
    const ports = new FakePorts();
    ports.pageMs = 20;
    ports.finds = [span(400), span(300), [], []];
    const { missing } = await migrationWith(ports, "hybrid").run();
    assert.deepEqual(
      ports.calls.slice(0, 5).map((call) => call.split(" ")[0]),
      ["start", "sendRound", "collect", "discard", "collect"],
    );
    assert.deepEqual(missing && pagesOf(missing), span(300).slice(2));
    assert.equal(ports.phases.at(-1), "postcopy-active");
  });

  it("with hybrid and a guest that can be followed switches over, and nothing is missing", async () => {
    const ports = busyPorts();
    assert.equal((await migrationWith(ports, "hybrid").run()).missing, undefined);
    assert.equal(ports.phases.at(-1), "completed");
  });

  it("with hybrid goes to post-copy when it is told to, or when its time is up; another mode refuses", async () => {
    for (const ask of [(one: Migration) => one.goToPostcopy(), (one: Migration) => one.timeOut()]) {
      const ports = busyPorts();
      const migration = migrationWith(ports, "hybrid", { timeoutAction: "postcopy", timeoutMs: 1 });
      ports.during = (call, nth) => {
        if (call === "sendRound" && nth === 1) ask(migration);
      };
      assert.notEqual((await migration.run()).missing, undefined);
    }
    assert.throws(() => migrationWith(busyPorts()).goToPostcopy(), { code: "ERR_NO_MIGRATION" });
  });

  it("with stop-and-copy goes from setup straight to device, and starts the log with the guest paused", async () => {
    const ports = busyPorts();
    const result = await migrationWith(ports, "stop-and-copy").run();
    assert.deepEqual(ports.phases, ["device", "committing", "completed"]);
    assert.deepEqual(
      ports.calls.map((call) => call.split(" ")[0]),
      ["pause", "start", "sendLast", "tell", "prepare", "decide", "commit"],
    );
    assert.equal(result.expectedDowntimeMs, undefined, "nothing was ever expected");
    assert.equal(result.setupMs, 100);
  });
});

/** Where a migration can be hit before COMMIT, and in which phase that is. */
const MOMENTS = [
  ["start", 1, "active"],
  ["sendRound", 1, "active"],
  ["collect", 1, "active"],
  ["sendRound", 2, "active"],
  ["collect", 2, "active"],
  ["pause", 1, "device"],
  ["collect", 3, "device"],
  ["sendLast", 1, "device"],
  ["prepare", 1, "device"],
] as const;

for (const [call, nth, phase] of MOMENTS)
  describe(`before COMMIT, in ${call} ${nth}`, () => {
    for (const how of ["cancel", "fail"] as const)
      it(`${how}() stops the ports once, waits for the work in flight, and leaves the guest to its owner`, async () => {
        const ports = busyPorts();
        const hold = new Hold(ports, call, nth);
        const migration = migrationWith(ports);
        let isSettled = false;
        const failing = failureOf(migration.run()).finally(() => {
          isSettled = true;
        });
        await hold.reached;
        assert.equal(ports.machine.state.phase, phase);
        const lost = new MigrationError("ERR_PEER_DEAD", "silent");
        if (how === "cancel") migration.cancel();
        else migration.fail(lost);
        await turn();
        assert.equal(ports.stopReasons.length, 1);
        assert.equal(isSettled, false, "rejected while a port was still at work");
        hold.throw(new MigrationError("ERR_LINK_LOST", "because it was stopped"));
        const error = await failing;
        if (how === "fail") assert.equal(error, lost);
        assert.equal(error.code, how === "cancel" ? "ERR_CANCELLED" : "ERR_PEER_DEAD", "and not what the stopped port says");
        assert.equal(ports.stopReasons[0], error);
        assert.equal(ports.machine.state.phase, how === "cancel" ? "cancelled" : "failed");
        assert.equal(ports.calls.at(-1), "stop", "nothing was asked after the stop");
        assert.equal(ports.calls.filter((line) => line === "pause").length, phase === "device" ? 1 : 0);
      });

    it("a port's own error ends it as failed, with the ports stopped once and that very error thrown", async () => {
      const ports = busyPorts();
      const hold = new Hold(ports, call, nth);
      const migration = migrationWith(ports);
      const failing = failureOf(migration.run());
      await hold.reached;
      const broken = new MigrationError("ERR_LINK_LOST", call);
      hold.throw(broken);
      assert.equal(await failing, broken);
      assert.equal(ports.machine.state.phase, "failed");
      assert.deepEqual(ports.stopReasons, [broken]);
      assert.ok(!ports.calls.includes("commit"));
    });
  });

describe("a migration that is hit", () => {
  it("before it began ends as cancelled, without a pause", async () => {
    const ports = busyPorts();
    const migration = migrationWith(ports);
    migration.cancel();
    assert.equal((await failureOf(migration.run())).code, "ERR_CANCELLED");
    assert.equal(ports.machine.state.phase, "cancelled");
    assert.equal(ports.stopReasons.length, 1);
    assert.ok(!ports.calls.includes("pause"));
  });

  it("before it began and with stop-and-copy, ends as cancelled, and sends nothing", async () => {
    const ports = busyPorts();
    const hold = new Hold(ports, "pause");
    const migration = migrationWith(ports, "stop-and-copy");
    migration.cancel();
    const failing = failureOf(migration.run());
    await hold.reached;
    await turn();
    hold.throw(new MigrationError("ERR_LINK_LOST", "because it was stopped"));
    assert.equal((await failing).code, "ERR_CANCELLED");
    assert.deepEqual(ports.calls, ["pause", "stop"]);
  });

  it("by a failure first and a cancel after it ends as failed: the first reason counts, and the ports are stopped once", async () => {
    const ports = busyPorts();
    const hold = new Hold(ports, "sendRound", 2);
    const migration = migrationWith(ports);
    const failing = failureOf(migration.run());
    await hold.reached;
    migration.fail(new MigrationError("ERR_PEER_DEAD", "silent"));
    migration.cancel();
    migration.fail(new MigrationError("ERR_LINK_LOST", "late"));
    await turn();
    hold.goOn();
    assert.equal((await failing).code, "ERR_PEER_DEAD");
    assert.equal(ports.machine.state.phase, "failed");
    assert.equal(ports.stopReasons.length, 1);
  });

  it("when it does not converge ends as failed with ERR_NOT_CONVERGING, the guest never paused", async () => {
    const ports = new FakePorts();
    ports.costMs = { sendRound: 5000 };
    ports.finds = Array.from({ length: 50 }, () => span(400));
    const migration = migrationWith(ports);
    const error = await failureOf(migration.run());
    assert.equal(error.code, "ERR_NOT_CONVERGING");
    assert.equal(ports.machine.state.phase, "failed");
    assert.deepEqual(ports.stopReasons, [error]);
    assert.ok(!ports.calls.includes("pause"));
  });

  it("when its time is up ends as failed with ERR_TIMEOUT, the guest never paused", async () => {
    const ports = busyPorts();
    const migration = migrationWith(ports, "precopy", { timeoutMs: 5000 });
    ports.onRoundDone = () => migration.timeOut();
    const error = await failureOf(migration.run());
    assert.equal(error.code, "ERR_TIMEOUT");
    assert.equal(ports.machine.state.phase, "failed");
    assert.ok(!ports.calls.includes("pause"));
  });

  it("whatever ends it, what was withheld of the guest is lifted before anybody lets it go on", async () => {
    const ports = new FakePorts();
    ports.costMs = { sendRound: 5000 };
    ports.finds = Array.from({ length: 50 }, () => span(400));
    const migration = migrationWith(ports, "precopy", { throttle: "auto-converge" });
    ports.during = (call, nth) => {
      if (call === "sendRound" && nth === 4) throw new MigrationError("ERR_LINK_LOST", "in the fourth round");
    };
    await failureOf(migration.run());
    assert.deepEqual(ports.withheld, [[0.2], []]);
    ports.tick();
    assert.deepEqual(ports.withheld.length, 2, "nothing acts afterwards");
  });

  it("by what is no MigrationError fails with ERR_INTERNAL as its code and the original as its cause", async () => {
    const ports = busyPorts();
    const bug = new TypeError("x is not a function");
    ports.during = (call) => {
      if (call === "pause") throw bug;
    };
    const error = await failureOf(migrationWith(ports).run());
    assert.deepEqual([error.code, error.cause], ["ERR_INTERNAL", bug]);
  });

  it("in the last moment in which cancel() is taken is never committed: a cancel that did not throw is obeyed", async () => {
    for (const how of ["cancel", "fail"] as const) {
      const ports = busyPorts();
      const migration = migrationWith(ports);
      ports.onRoundDone = ({ round }) => {
        if (round < 3) return;
        assert.equal(ports.machine.state.phase, "device"); // PREPARED is here, COMMIT is not out
        if (how === "cancel") migration.cancel();
        else migration.fail(new MigrationError("ERR_PEER_DEAD", "silent"));
      };
      const error = await failureOf(migration.run());
      assert.equal(error.code, how === "cancel" ? "ERR_CANCELLED" : "ERR_PEER_DEAD");
      assert.equal(ports.machine.state.phase, how === "cancel" ? "cancelled" : "failed");
      assert.deepEqual(ports.stopReasons, [error]);
      assert.ok(!ports.calls.includes("decide committed") && !ports.calls.includes("commit"), ports.calls.join("; "));
    }
  });

  it("and whose ports cannot be stopped in good order still waits for its work, and reports why it was hit", async () => {
    const ports = busyPorts();
    const hold = new Hold(ports, "sendRound", 1);
    const { during } = ports;
    ports.during = (call, nth) => {
      if (call === "stop") throw new Error("the link does not end");
      return during(call, nth);
    };
    const migration = migrationWith(ports);
    let isSettled = false;
    const failing = failureOf(migration.run()).finally(() => {
      isSettled = true;
    });
    await hold.reached;
    migration.cancel();
    await turn();
    assert.equal(isSettled, false, "rejected while a port was still at work");
    hold.throw(new MigrationError("ERR_LINK_LOST", "gone"));
    assert.equal((await failing).code, "ERR_CANCELLED");
    assert.equal(ports.machine.state.phase, "cancelled");
  });
});

describe("a decision that cannot be written down", () => {
  it("is none: the migration ends as failed, COMMIT never leaves, and the guest is still the source's", async () => {
    const ports = busyPorts();
    const full = new MigrationError("ERR_INTERNAL", "ENOSPC");
    ports.during = (call) => {
      if (call === "decide") throw full;
    };
    const migration = migrationWith(ports);
    assert.equal(await failureOf(migration.run()), full);
    assert.equal(ports.machine.state.phase, "failed");
    assert.ok(!ports.calls.includes("commit"));
  });
});

describe("after COMMIT", () => {
  async function inCommit(): Promise<{
    ports: FakePorts;
    migration: Migration;
    hold: Hold;
    running: Promise<SwitchResult>;
    doubt: () => void;
  }> {
    const ports = busyPorts();
    const hold = new Hold(ports, "commit");
    const migration = migrationWith(ports);
    const running = migration.run();
    running.catch(() => {}); // looked at by each test when it is time
    await hold.reached;
    return { ports, migration, hold, running, doubt: () => ports.machine.step("silence") };
  }

  it("the decision is journalled before COMMIT leaves, and once it is the phase is committing", async () => {
    const { ports, hold, running } = await inCommit();
    assert.equal(ports.machine.state.phase, "committing");
    assert.deepEqual(ports.calls.slice(-2), ["decide committed", "commit"]);
    hold.goOn();
    await running;
  });

  it("cancel() is refused with ERR_CANCEL_TOO_LATE, in committing, in doubt and at the end, and changes nothing", async () => {
    const { ports, migration, hold, running, doubt } = await inCommit();
    assert.throws(() => migration.cancel(), { code: "ERR_CANCEL_TOO_LATE" });
    doubt();
    assert.throws(() => migration.cancel(), { code: "ERR_CANCEL_TOO_LATE" });
    hold.goOn();
    await running;
    assert.throws(() => migration.cancel(), { code: "ERR_CANCEL_TOO_LATE" });
    assert.deepEqual(ports.stopReasons, []);
  });

  it("a lost link changes nothing: the engine waits for the answer, and the guest is the target's when it comes", async () => {
    const { ports, migration, hold, running } = await inCommit();
    migration.fail(new MigrationError("ERR_PEER_DEAD", "silent"));
    await turn();
    assert.equal(ports.machine.state.phase, "committing");
    hold.goOn();
    await running;
    assert.equal(ports.machine.state.phase, "completed");
    assert.deepEqual(ports.stopReasons, []);
  });

  it("in doubt and then active ends as completed, and the whole wait counts as downtime", async () => {
    const { ports, hold, running, doubt } = await inCommit();
    doubt();
    assert.equal(ports.machine.state.phase, "in-doubt");
    ports.nowMs += 60_000;
    hold.goOn();
    const { downtimeMs, breakdown } = await running;
    assert.deepEqual(ports.phases.slice(-2), ["in-doubt", "completed"]);
    assert.deepEqual([downtimeMs, breakdown.commit], [60_017, 60_006]);
  });

  it("a final refusal ends as taken-back with ERR_TAKEN_BACK, one epoch higher, in doubt or not", async () => {
    for (const isInDoubt of [true, false]) {
      const { ports, hold, running, doubt } = await inCommit();
      if (isInDoubt) doubt();
      ports.answer = "discarded";
      hold.goOn();
      assert.equal((await failureOf(running)).code, "ERR_TAKEN_BACK");
      assert.deepEqual([ports.machine.state.phase, ports.machine.state.epoch], ["taken-back", EPOCH + 1]);
      assert.deepEqual(ports.stopReasons, [], "the owner of the migration ends the ports, in its own time");
    }
  });

  it("the operator who gives the guest up ends it with ERR_GIVEN_UP", async () => {
    const { ports, hold, running, doubt } = await inCommit();
    doubt();
    ports.answer = "give-up";
    hold.goOn();
    assert.equal((await failureOf(running)).code, "ERR_GIVEN_UP");
    assert.equal(ports.machine.state.phase, "given-up");
  });
});
