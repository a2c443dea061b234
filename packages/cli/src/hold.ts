/**
 * Lets a test stop an agent in one state of a hand-over, where milliseconds would otherwise decide: PRECOPY_HOLD=POINT:MS, for example
 * source.device:3000. Announced on stdout as one JSON line, so that the test knows when. Never set in production.
 */
export async function holdAt(point: string): Promise<void> {
  const [where, ms] = (process.env["PRECOPY_HOLD"] ?? "").split(":");
  if (where !== point) return;
  process.stdout.write(`${JSON.stringify({ type: "hold", point })}\n`);
  await new Promise((resolve) => setTimeout(resolve, Number(ms)));
}
