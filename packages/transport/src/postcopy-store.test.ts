import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Pieces } from "@precopy/linux";
import { HEADER_BYTES, PacketKind, PageEncoding } from "@precopy/protocol";
import type { PacketHeader, RunBounds } from "@precopy/protocol";
import type { ChannelStore } from "./page-store.js";
import { PostcopyStore } from "./postcopy-store.js";

const HEADER: PacketHeader = {
  kind: PacketKind.Pages,
  encoding: PageEncoding.Raw,
  round: 1,
  sequence: 0,
  dataRuns: 0,
  zeroRuns: 0,
  payloadBytes: 0,
  lanes: 0,
};
const HEAD = Buffer.alloc(HEADER_BYTES);

/** Says in `calls` what is asked of it. */
function recording(name: string, calls: string[]): ChannelStore {
  const bounds: RunBounds = { pages: 7, mayCarry: () => true };
  return {
    bounds,
    begin: ({ sequence }) => void calls.push(`${name} begin ${sequence}`),
    nextPieces: () => calls.push(`${name} pieces`),
    payload: (bytes) => void calls.push(`${name} payload ${bytes.byteLength}`),
    end: () => void calls.push(`${name} end`),
  };
}
function make(): {
  readonly store: PostcopyStore;
  readonly calls: string[];
  readonly listening: Int32Array;
  readonly stored: ChannelStore;
} {
  const calls: string[] = [];
  const listening = new Int32Array(new SharedArrayBuffer(4));
  const stored = recording("store", calls);
  const store = new PostcopyStore(listening, stored, (descriptor) => {
    calls.push(`place by ${descriptor}`);
    return recording("placer", calls);
  });
  return { store, calls, listening, stored };
}
/** All of a packet; `during` runs after each of its calls. */
function packet(store: PostcopyStore, sequence: number, during: () => void = () => {}): void {
  for (const step of [
    () => store.begin({ ...HEADER, sequence }, HEAD, 0),
    () => store.nextPieces(new Pieces(1)),
    () => store.payload(Buffer.alloc(5)),
    () => store.end(),
  ]) {
    step();
    during();
  }
}
const whole = (name: string, sequence: number): string[] => [
  `${name} begin ${sequence}`,
  `${name} pieces`,
  `${name} payload 5`,
  `${name} end`,
];

describe("PostcopyStore", () => {
  it("stores every packet, and makes no placer, as long as nobody listens", () => {
    const { store, calls } = make();
    for (const sequence of [0, 1, 2]) packet(store, sequence);
    assert.deepEqual(
      calls,
      [0, 1, 2].flatMap((sequence) => whole("store", sequence)),
    );
  });

  it("places from the first packet on that begins after the word was set, all of it and all that follow, by one placer of that descriptor", () => {
    const { store, calls, listening } = make();
    packet(store, 0);
    Atomics.store(listening, 0, 43);
    for (const sequence of [1, 2]) packet(store, sequence);
    assert.deepEqual(calls, [...whole("store", 0), "place by 42", ...whole("placer", 1), ...whole("placer", 2)]);
  });

  it("does not change its mind in the middle of a packet, wherever in it the word is set", () => {
    for (let when = 0; when < 4; when++) {
      const { store, calls, listening } = make();
      let step = 0;
      packet(store, 0, () => step++ === when && Atomics.store(listening, 0, 1));
      packet(store, 1);
      assert.deepEqual(calls, [...whole("store", 0), "place by 0", ...whole("placer", 1)], `after call ${when}`);
    }
  });

  it("keeps placing whatever becomes of the word", () => {
    const { store, calls, listening } = make();
    Atomics.store(listening, 0, 8);
    packet(store, 0);
    for (const word of [0, 9]) {
      Atomics.store(listening, 0, word);
      packet(store, 1);
    }
    assert.deepEqual(calls, ["place by 7", ...whole("placer", 0), ...whole("placer", 1), ...whole("placer", 1)]);
  });

  it("has the bounds of its store throughout, and hands on how many pieces there are", () => {
    const { store, listening, stored, calls } = make();
    assert.equal(store.bounds, stored.bounds);
    assert.equal(store.nextPieces(new Pieces(1)), calls.length);
    Atomics.store(listening, 0, 1);
    packet(store, 0);
    assert.equal(store.bounds, stored.bounds);
    assert.equal(store.nextPieces(new Pieces(1)), calls.length);
  });
});
