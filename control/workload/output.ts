/**
 * The application's output, as kept in two files on this node: its reader is started again when it ends, and what is in the files is
 * shown to people.
 */
import { open } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import { messageOf } from "#proxy/contract/errors.ts";
import { isSameProcess } from "../runtime/processes.ts";
import type { OutputOptions, Sandbox, SandboxRef } from "../runtime/runtime.ts";

const LOOK_MS = 1_000;
const FOLLOW_MS = 100;
const CHUNK_BYTES = 64 * 1024;
/** looked through for the lines asked for */
const TAIL_BYTES_MAX = 4 * 1024 * 1024;

/** Whose output it is. */
export interface OutputHost {
  readonly name: string;
  readonly context: { readonly log: Logger };
  readonly outputOptions: OutputOptions;
  /** null: there is none on record */
  readonly sandbox: Sandbox | null;
  readonly journal: { readonly container: SandboxRef | null };
  record(patch: { container: SandboxRef }): void;
}

export class Output {
  #workload: OutputHost;
  #timer: NodeJS.Timeout | undefined;
  #isLooking = false;

  constructor(workload: OutputHost) {
    this.#workload = workload;
  }

  keep(): void {
    this.#timer ??= setInterval(() => {
      if (this.#isLooking) return;
      this.#isLooking = true;
      this.#look()
        .catch((error: unknown) =>
          this.#workload.context.log.warn(
            { workload: this.#workload.name, reason: messageOf(error) },
            "the reader of the application's output cannot be started again; it is tried again",
          ),
        )
        .finally(() => {
          this.#isLooking = false;
        });
    }, LOOK_MS).unref();
  }

  close(): void {
    clearInterval(this.#timer);
  }

  async #look(): Promise<void> {
    const { sandbox: container } = this.#workload;
    if (container === null) return;
    const known = container.ref.reader;
    if (known !== undefined && (await isSameProcess(known))) return;
    if (!(await isSameProcess(container.init))) return;
    const reader = await container.readOutput(this.#workload.outputOptions);
    const { journal, context, name } = this.#workload;
    // the container may be another by now; a reader of the old one ends with it
    if (journal.container?.id === container.id)
      this.#workload.record({ container: { ...journal.container, reader } });
    context.log.warn({ workload: name }, "the reader of the application's output had ended; started again");
  }
}

export interface TailOptions {
  /** of the end of what there is */
  lines: number;
  /** go on with what comes, until `signal` */
  follow: boolean;
  signal: AbortSignal;
}

/** The last lines of a log that is kept in `file` and, before it, `file`.1; then what is added, across rotations. */
export async function* tail(file: string, options: TailOptions): AsyncGenerator<Buffer> {
  const { lines, follow, signal } = options;
  let handle = await openIfThere(file);
  try {
    const { size = 0 } = (await handle?.stat()) ?? {};
    let last = handle === null ? Buffer.alloc(0) : await lastLines(handle, size, lines);
    const found = countLines(last);
    if (found < lines) {
      await using before = await openIfThere(`${file}.1`);
      if (before !== null) {
        const rest = await lastLines(before, (await before.stat()).size, lines - found);
        last = Buffer.concat([rest, last]);
      }
    }
    if (last.length > 0) yield last;
    let at = size;
    while (follow && !signal.aborted) {
      const chunk = handle === null ? null : await readAt(handle, at);
      if (chunk !== null) {
        at += chunk.length;
        yield chunk;
        continue;
      }
      const next = await openIfThere(file);
      const isOther = next !== null && (await next.stat()).ino !== (await handle?.stat())?.ino;
      if (isOther) {
        // what was written between the two looks at the old one
        for (
          let more = handle && (await readAt(handle, at));
          more;
          more = await readAt(handle as never, at)
        ) {
          at += more.length;
          yield more;
        }
        await handle?.close();
        handle = next;
        at = 0;
        continue;
      }
      await next?.close();
      await delay(FOLLOW_MS, undefined, { signal }).catch(() => {});
    }
  } finally {
    await handle?.close();
  }
}

type Handle = Awaited<ReturnType<typeof open>>;

async function openIfThere(file: string): Promise<Handle | null> {
  try {
    return await open(file, "r");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw error;
  }
}

/** null: there is nothing yet */
async function readAt(handle: Handle, at: number): Promise<Buffer | null> {
  const chunk = Buffer.alloc(CHUNK_BYTES);
  const { bytesRead } = await handle.read(chunk, 0, chunk.length, at);
  return bytesRead === 0 ? null : chunk.subarray(0, bytesRead);
}

async function lastLines(handle: Handle, size: number, lines: number): Promise<Buffer> {
  const bytes = Buffer.alloc(Math.min(size, TAIL_BYTES_MAX));
  const { bytesRead } = await handle.read(bytes, 0, bytes.length, size - bytes.length);
  const text = bytes.subarray(0, bytesRead);
  // the newline that ends the last line begins none
  let from = text.at(-1) === 10 ? text.length - 1 : text.length;
  for (let left = lines; left > 0 && from > 0; left--) {
    from = text.lastIndexOf(10, from - 1);
    if (from < 0) return text;
  }
  return lines === 0 ? Buffer.alloc(0) : text.subarray(from + 1);
}

function countLines(text: Buffer): number {
  // one that is not ended yet is a line too
  let count = text.length === 0 || text.at(-1) === 10 ? 0 : 1;
  for (let at = text.indexOf(10); at >= 0; at = text.indexOf(10, at + 1)) count++;
  return count;
}
