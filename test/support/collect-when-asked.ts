/**
 * Loaded into a process under test: whoever connects to the Unix socket in HOLDFAST_COLLECT is told what memory the process has
 * once all garbage is gone ({@link Memory}, as JSON); then the connection ends. Needs `--expose-gc`.
 *
 * What a process has resident says more about when V8 last looked than about what it keeps: it lets some 64 MiB of garbage
 * outside its heap lie before it looks (kExternalAllocationSoftLimit), and malloc(3) keeps what it is given back below a chunk
 * that is in use.
 */
import { createServer } from "node:net";

export interface Memory {
  /** what is in use, in V8's heap and outside of it (ArrayBuffers) */
  keptBytes: number;
  /** everything: code, stacks, what malloc(3) has and nobody uses, what a library has allocated by itself */
  residentBytes: number;
}

const path = process.env.HOLDFAST_COLLECT;
if (path === undefined || globalThis.gc === undefined)
  throw new Error("needs HOLDFAST_COLLECT and --expose-gc");
const collect = globalThis.gc;

createServer((socket) => {
  socket.on("error", () => {}); // the test has ended
  // What was freed by the first is given back by the time the second is through.
  for (let turn = 0; turn < 2; turn++) collect({ type: "major", execution: "sync", flavor: "last-resort" });
  const { heapUsed, external, rss } = process.memoryUsage();
  const memory: Memory = { keptBytes: heapUsed + external, residentBytes: rss };
  socket.end(JSON.stringify(memory));
})
  .listen(path)
  .unref();
