import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Bitmap, GuestMemory, SegmentPool, allocateHashTable, joinDigests } from "@precopy/guest";
import { MigrationError } from "@precopy/protocol";
import type { Message } from "@precopy/protocol";
import { LaneTable, PageChannel, connectPageChannel } from "@precopy/transport";
import type { ControlChannel } from "@precopy/transport";
import { MEMORY_BYTES, listen, offer } from "./listening-target.js";

const silent = (): MigrationError => new MigrationError("ERR_PEER_DEAD", "no answer");

/** A source by hand: one channel, one page of data, and each of its last three words when the test wants it. */
async function admitted(context: TestContext, isDigestOn: boolean) {
  const target = await listen(context);
  const admit = offer({ digest: isDigestOn });
  const control = await target.offer(admit);
  const memory = GuestMemory.allocate(MEMORY_BYTES, new SegmentPool());
  memory.view(3, 1).fill(7);
  const { socket } = await connectPageChannel(
    target.address,
    { session: admit.session, channel: 0, generation: 1 },
    new AbortController().signal,
    { key: target.key() },
  );
  const channel = await PageChannel.open(socket, target.threads, {
    type: "send",
    pump: "portable",
    channel: 0,
    generation: 1,
    lanes: LaneTable.allocate(1).share(),
    memory: memory.share(),
    hashes: isDigestOn ? allocateHashTable(memory.pages) : undefined,
    compression: "none",
  });
  context.after(() => channel.end());
  const pages = new Bitmap(memory.pages);
  pages.setRun(3, 1);
  return {
    target,
    control,
    /** Resolves with the digest of what was sent. */
    pages: async () => joinDigests([(await channel.sendRound(1, pages.words, 0, [{ lane: 0, page: 0 }])).digest ?? 0n]),
    state: () =>
      control.send({
        type: "state",
        epoch: 1,
        round: 1,
        registers: [{ program: null, lastTickMs: 0 }],
        devices: [],
        clockMs: 1,
      }),
    image: (digest: string, epoch = 1) => control.send({ type: "image", epoch, digest }),
  };
}

/** What the target says next, PREPARED or not. */
function verdict(control: ControlChannel): Promise<Message<"prepared"> | Message<"failed">> {
  return control.expect(["prepared", "failed"], 5000, silent);
}
const isQuiet = async (answer: Promise<unknown>): Promise<boolean> => {
  const nothing = Symbol("nothing");
  return (await Promise.race([answer, sleep(150, nothing)])) === nothing;
};

describe("PREPARED", () => {
  let digest: string | undefined;
  const words = ["pages", "state", "image"] as const;
  const orders = words.flatMap((first) => words.filter((one) => one !== first).map((second) => [first, second] as const));
  for (const [first, second] of orders)
    it(`comes when pages, state and image are there, ${first} first and ${second} before the last, and not sooner`, async (context) => {
      const source = await admitted(context, true);
      digest ??= await (await admitted(context, true)).pages(); // the same image, elsewhere
      const say = { pages: () => source.pages(), state: () => source.state(), image: () => source.image(digest ?? "") };
      const answer = verdict(source.control);
      await say[first]();
      assert.ok(await isQuiet(answer), `after ${first}`);
      await say[second]();
      assert.ok(await isQuiet(answer), `after ${first} and ${second}`);
      await say[words.find((one) => one !== first && one !== second) ?? "pages"]();
      const said = await answer;
      assert.deepEqual([said.type, said.type === "prepared" && said.digest], ["prepared", digest]);
    });

  it("needs no image where no digest was asked for", async (context) => {
    const source = await admitted(context, false);
    const answer = verdict(source.control);
    source.state();
    await source.pages();
    const said = await answer;
    assert.deepEqual([said.type, said.type === "prepared" && said.digest], ["prepared", null]);
  });

  it("never comes for an image of another digest: ERR_DIGEST_MISMATCH, and the guest is gone from here", async (context) => {
    const source = await admitted(context, true);
    const answer = verdict(source.control);
    source.state();
    await source.pages();
    source.image("0123456789abcdef");
    const said = await answer;
    assert.deepEqual([said.type, said.type === "failed" && said.code], ["failed", "ERR_DIGEST_MISMATCH"]);
    while (source.target.agent.isReceiving) await sleep(5);
    assert.equal(source.target.registry.guest, undefined);
  });

  it("does not come either for an image that nobody asked for, or of another epoch: ERR_BAD_MESSAGE", async (context) => {
    const asked = await admitted(context, true);
    const refusedEpoch = verdict(asked.control);
    asked.image("0123456789abcdef", 2);
    const unasked = await admitted(context, false);
    const refused = verdict(unasked.control);
    unasked.image("0123456789abcdef");
    for (const said of await Promise.all([refusedEpoch, refused]))
      assert.deepEqual([said.type, said.type === "failed" && said.code], ["failed", "ERR_BAD_MESSAGE"]);
  });
});
