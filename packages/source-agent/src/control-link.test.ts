import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { TestContext } from "node:test";
import { MigrationError, REJOIN_AGAIN_MS, REJOIN_GRACE_MS } from "@precopy/protocol";
import type { Address, ControlMessage, Message } from "@precopy/protocol";
import { AgentPort, ControlChannel } from "@precopy/transport";
import { ControlLink } from "./control-link.js";

const ATTEMPT = { guest: "g1", epoch: 7, session: "00000000-0000-4000-8000-000000000001" };
const CUT = new MigrationError("ERR_LINK_LOST", "the target cut it");
const OVER = new MigrationError("ERR_CANCELLED", "the operator had enough");
const flushed = (packets: number): ControlMessage => ({ type: "flushed", channel: 0, generation: 1, round: 1, packets });
const REJOINED: Message<"rejoined"> = {
  type: "rejoined",
  epoch: ATTEMPT.epoch,
  flushed: [{ channel: 0, generation: 1, round: 3, packets: 9 }],
  lost: [{ channel: 1, generation: 2 }],
};

/** Polled, because what is waited for happens on sockets; what never comes true fails the test instead of hanging it. */
async function until(what: string, isSo: () => boolean): Promise<void> {
  for (const started = performance.now(); !isSo(); await new Promise((resolve) => setTimeout(resolve, 2)))
    assert.ok(performance.now() - started < 20_000, `${what} did not come true within 20 s`);
}

/** The target's port: every control channel opened to it, and what came on it. */
class Target {
  readonly address: Address;
  readonly accepted: { readonly channel: ControlChannel; readonly heard: ControlMessage[] }[] = [];
  onMessage: (message: ControlMessage, channel: ControlChannel) => void = () => {};

  private constructor(address: Address) {
    this.address = address;
  }

  static async listen(context: TestContext): Promise<Target> {
    const onControl = (channel: ControlChannel): void => {
      const heard: ControlMessage[] = [];
      target.accepted.push({ channel, heard });
      channel.onMessage = (message) => {
        heard.push(message);
        target.onMessage(message, channel);
      };
    };
    const port = await AgentPort.listen(
      { host: "127.0.0.1", port: 0 },
      { onControl, onPageChannel: () => false, onFaultChannel: () => false },
      "test",
    );
    const target = new Target(port.address);
    context.after(() => port.close());
    return target;
  }

  /** The latest. */
  get channel(): ControlChannel {
    return this.accepted.at(-1)?.channel ?? assert.fail("nobody came");
  }

  get open(): number {
    return this.accepted.filter(({ channel }) => channel.closed === undefined).length;
  }

  typesHeardBy(nth: number): string[] {
    return this.accepted[nth]?.heard.map(({ type }) => type) ?? [];
  }
}

/** A link to that target, and what it told, in order. */
async function linked(context: TestContext) {
  const target = await Target.listen(context);
  const link = new ControlLink(await ControlChannel.connect(target.address), target.address, ATTEMPT);
  context.after(() => link.close(OVER));
  await until("the target has the channel", () => target.accepted.length === 1);
  const told: string[] = [];
  const rejoins: [Message<"rejoined">, boolean][] = [];
  link.onLost = ({ code }) => told.push(`lost ${code}`);
  link.onDead = ({ code }) => told.push(`dead ${code}`);
  link.onMessage = (message) => told.push(message.type === "flushed" ? `flushed ${message.packets}` : message.type);
  link.onRejoined = (missed, wasSilent) => {
    rejoins.push([missed, wasSilent]);
    told.push("rejoined");
  };
  return { target, link, told, rejoins };
}
const answering = (message: ControlMessage, channel: ControlChannel): void => {
  if (message.type === "rejoin") channel.send(REJOINED);
};

describe("a link that lasts", () => {
  it("is joined again on a new channel, hands over what was missed, and goes on there in both directions", async (context) => {
    const { target, link, told, rejoins } = await linked(context);
    link.setLasting(true);
    target.onMessage = (message, channel) => {
      answering(message, channel);
      if (message.type === "rejoin") channel.send(flushed(10)); // right behind the answer
    };
    target.channel.close(CUT);
    await until("it is joined again", () => told.includes("rejoined") && told.includes("flushed 10"));
    await link.ready();
    assert.deepEqual(target.accepted[1]?.heard, [{ type: "rejoin", ...ATTEMPT }]);
    assert.deepEqual(rejoins, [[REJOINED, false]]);
    target.channel.send(flushed(11));
    await until("a message arrives", () => told.includes("flushed 11"));
    link.send({ type: "carry", lane: 0, channel: 1 });
    await until("a message is heard", () => target.typesHeardBy(1).includes("carry"));
    assert.deepEqual(
      told.filter((one) => !one.startsWith("flushed")),
      ["lost ERR_LINK_LOST", "rejoined"],
    );
    assert.deepEqual([link.rejoins, target.open], [1, 1]);
  });

  it("is joined again as often as it breaks, and says when the peer had been silent, so that page channels are suspect, too", async (context) => {
    const { target, link, rejoins } = await linked(context);
    link.setLasting(true);
    target.onMessage = answering;
    for (let nth = 1; nth <= 3; nth++) {
      if (nth === 3) link.channel.close(new MigrationError("ERR_PEER_DEAD", "silence"));
      else target.channel.close(CUT);
      await until(`join ${nth}`, () => rejoins.length === nth);
    }
    assert.deepEqual(
      rejoins.map(([, wasSilent]) => wasSilent),
      [false, false, true],
    );
    assert.equal(link.rejoins, 3);
    await until("one channel is left", () => target.open === 1);
  });

  it("has ready() wait while it is broken, and resolve when it is back; `expect` fails meanwhile", async (context) => {
    const { target, link, told } = await linked(context);
    link.setLasting(true);
    const waiting = link.expect(["carried"], 20_000, () => OVER);
    target.channel.close(CUT);
    await assert.rejects(waiting, { code: "ERR_LINK_LOST" });
    let isReady = false;
    const ready = link.ready().then(() => (isReady = true));
    await until("it asks", () => target.typesHeardBy(1).includes("rejoin"));
    assert.equal(isReady, false);
    target.channel.send(REJOINED);
    await ready;
    assert.deepEqual(told, ["lost ERR_LINK_LOST", "rejoined"]);
  });

  it("tries again when the channel breaks before the answer", async (context) => {
    const { target, link, told } = await linked(context);
    link.setLasting(true);
    target.onMessage = (message, channel) => {
      if (target.accepted.length < 4) channel.close(CUT);
      else answering(message, channel);
    };
    target.channel.close(CUT);
    await until("it is joined again", () => told.includes("rejoined"));
    assert.deepEqual(told, ["lost ERR_LINK_LOST", "rejoined"]);
    assert.equal(link.rejoins, 1);
  });

  for (const code of ["ERR_NO_MIGRATION", "ERR_PROTOCOL_VERSION"] as const)
    it(`ends at once with the target's own word if it refuses with ${code}`, async (context) => {
      const { target, link, told } = await linked(context);
      link.setLasting(true);
      target.onMessage = (_, channel) => channel.send({ type: "refused", code, message: "no" });
      target.channel.close(CUT);
      await until("it is dead", () => told.includes(`dead ${code}`));
      await assert.rejects(link.ready(), { code });
      await until("no channel is left", () => target.open === 0);
      assert.equal(target.accepted.length, 2, "it asked once");
    });

  it("is dead with the reason that it broke for when nobody lets it in for REJOIN_GRACE_MS, and not before", async (context) => {
    const { target, link, told } = await linked(context);
    let ahead = 0;
    const real = performance.now.bind(performance);
    context.mock.method(performance, "now", () => real() + ahead);
    link.setLasting(true);
    target.onMessage = (_, channel) => channel.close(CUT);
    link.channel.close(new MigrationError("ERR_BAD_MESSAGE", "garbage"));
    await until("it tried", () => target.accepted.length > 2);
    assert.deepEqual(told, ["lost ERR_BAD_MESSAGE"]);
    ahead = REJOIN_GRACE_MS;
    await until("it is dead", () => told.length > 1);
    assert.deepEqual(told, ["lost ERR_BAD_MESSAGE", "dead ERR_BAD_MESSAGE"]);
    await assert.rejects(link.ready(), { code: "ERR_BAD_MESSAGE" });
    const tries = target.accepted.length;
    await new Promise((resolve) => setTimeout(resolve, 3 * REJOIN_AGAIN_MS)); // the time is what is tested
    assert.equal(target.accepted.length, tries);
  });
});

describe("a link that does not last", () => {
  it("is dead at once when it breaks, and nobody tries again", async (context) => {
    const { target, link, told } = await linked(context);
    link.setLasting(true);
    link.setLasting(false);
    target.channel.close(CUT);
    await until("it is dead", () => told.length > 0);
    assert.deepEqual(told, ["dead ERR_LINK_LOST"]);
    await assert.rejects(link.ready(), { code: "ERR_LINK_LOST" });
    await new Promise((resolve) => setTimeout(resolve, 2 * REJOIN_AGAIN_MS)); // the time is what is tested
    assert.deepEqual([target.accepted.length, link.rejoins, told.length], [1, 0, 1]);
  });

  it("made of a channel that is closed already is dead from the start", async (context) => {
    const target = await Target.listen(context);
    const channel = await ControlChannel.connect(target.address);
    channel.close(CUT);
    await assert.rejects(new ControlLink(channel, target.address, ATTEMPT).ready(), (error) => error === CUT);
  });
});

describe("close", () => {
  it("ends the channel and has ready() reject with the reason; nobody is told of a loss", async (context) => {
    const { target, link, told } = await linked(context);
    link.setLasting(true);
    await link.ready();
    link.close(OVER);
    await assert.rejects(link.ready(), (error) => error === OVER);
    await until("the channel is gone", () => target.open === 0);
    assert.deepEqual(told, []);
  });

  it("while the target thinks about the rejoin says abort on that channel, has ready() reject, and leaves no connection", async (context) => {
    const { target, link, told } = await linked(context);
    link.setLasting(true);
    target.channel.close(CUT);
    await until("it is lost", () => told.length > 0);
    const ready = assert.rejects(link.ready(), (error) => error === OVER);
    await until("it asks", () => target.typesHeardBy(1).includes("rejoin"));
    link.close(OVER);
    await ready;
    await until("no channel is left", () => target.open === 0);
    assert.deepEqual(target.accepted[1]?.heard.at(-1), { type: "abort", code: OVER.code, message: OVER.message });
    assert.deepEqual([told, target.accepted.length], [["lost ERR_LINK_LOST"], 2]);
  });

  it("between two tries ends them: nobody connects any more", async (context) => {
    const { target, link, told } = await linked(context);
    link.setLasting(true);
    target.onMessage = (_, channel) => channel.close(CUT);
    target.channel.close(CUT);
    await until("it tried", () => target.accepted.length > 1 && target.open === 0);
    link.close(OVER);
    const tries = target.accepted.length;
    await new Promise((resolve) => setTimeout(resolve, 3 * REJOIN_AGAIN_MS)); // the time is what is tested
    assert.ok(target.accepted.length <= tries + 1 && target.open === 0, "one may have been on its way");
    assert.deepEqual(told, ["lost ERR_LINK_LOST"]);
  });

  it("by the message right behind the answer leaves no connection, and says abort there", async (context) => {
    const { target, link, told } = await linked(context);
    link.setLasting(true);
    link.onMessage = () => link.close(OVER);
    target.onMessage = (message, channel) => {
      answering(message, channel);
      if (message.type === "rejoin") channel.send({ type: "failed", code: "ERR_MEMORY", message: "none" }); // one read there takes in both
    };
    target.channel.close(CUT);
    await until("it is lost", () => told.length > 0);
    await assert.rejects(link.ready(), (error) => error === OVER);
    await new Promise((resolve) => setTimeout(resolve, 3 * REJOIN_AGAIN_MS)); // for what goes through sockets
    const left = target.open;
    link.channel.close(OVER); // so that the test can end
    assert.deepEqual([left, target.typesHeardBy(1)], [0, ["rejoin", "abort"]]);
  });
});
