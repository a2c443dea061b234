/** Numbers, strings, booleans, null, bytes, and arrays and plain objects of them: msgpack can also carry dates, errors and other classes. */
export function isPlainData(value: unknown, depth = 0): boolean {
  if (value === null || ["number", "string", "boolean"].includes(typeof value) || value instanceof Uint8Array) return true;
  if (typeof value !== "object" || depth > 16) return false;
  if (Array.isArray(value)) return value.every((one) => isPlainData(one, depth + 1));
  return Object.getPrototypeOf(value) === Object.prototype && Object.values(value).every((one) => isPlainData(one, depth + 1));
}
