/** For the fuzzer's own test: breaks for one word only, and nothing tells how near an input comes but what of this runs. */
export function planted(input: Buffer): void {
  if (input[0] === 0x66) {
    if (input[1] === 0x75) {
      if (input[2] === 0x7a) {
        if (input[3] === 0x7a) throw new Error("found");
      }
    }
  }
}
