/** What must not outlive this process. */
interface Killable {
  kill(signal: "SIGKILL"): unknown;
}

const alive = new Set<Killable>();
process.on("exit", () => {
  for (const child of alive) child.kill("SIGKILL");
});
for (const [signal, code] of [["SIGINT", 130] as const, ["SIGTERM", 143] as const]) process.once(signal, () => process.exit(code));

/** Kills `child` when this process ends, also by Ctrl-C or because a test took too long. @returns to be called once it has ended by itself */
export function leaveNoOrphan(child: Killable): () => void {
  alive.add(child);
  return () => alive.delete(child);
}
