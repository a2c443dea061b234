/** A WebAssembly.Memory that is shared. @types/node 20 does not declare the namespace, so what is used of it stands here. */
export interface WasmMemory {
  readonly buffer: SharedArrayBuffer;
}
export type WasmModule = object;

interface Namespace {
  readonly Memory: new (limits: { initial: number; maximum: number; shared: true }) => WasmMemory;
  readonly Module: new (bytes: Uint8Array) => WasmModule;
  readonly Instance: new (module: WasmModule, imports: { env: { memory: WasmMemory } }) => { readonly exports: unknown };
}
// Every Node we run on has it, with these constructors (ECMAScript's WebAssembly JavaScript Interface).
const wasm = Reflect.get(globalThis, "WebAssembly") as Namespace;

const WASM_PAGE_BYTES = 65536;

/** Shared, page-aligned memory of at least `bytes`, rounded up to 64 KiB; at most 4 GiB. @throws {RangeError} without address space for it. */
export function newSharedMemory(bytes: number): WasmMemory {
  const pages = Math.ceil(bytes / WASM_PAGE_BYTES);
  return new wasm.Memory({ initial: pages, maximum: pages, shared: true });
}

export const compileModule = (bytes: Uint8Array): WasmModule => new wasm.Module(bytes);

/** @returns the exports; what they are is the caller's to know. */
export const instantiateOver = (module: WasmModule, memory: WasmMemory): unknown => new wasm.Instance(module, { env: { memory } }).exports;
