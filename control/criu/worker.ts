/**
 * One CRIU process inside a container's namespaces, driven over its RPC socket (`criu swrk FD`, https://criu.org/RPC).
 * The only file that starts CRIU.
 *
 * It is started ahead of the cutover, so that loading it costs no blackout; it serves one request and ends. CRIU
 * calls back at each of its hooks (`notify_scripts`), which is how the hold can wait until just before the freeze.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { fail } from "#proxy/contract/error-codes.ts";
import { type HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as mounts from "#proxy/kernel/mounts.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { readImage, writeImage } from "./image-files.ts";
import { joinThenExec } from "./join-cgroups.ts";
import {
  type CriuOptions,
  type CriuResponse,
  decodeResponse,
  encodeRequest,
  NOTIFY_TYPE,
  type RequestType,
} from "./protocol.ts";
import { KERNEL_CACHE, SealedCriu } from "./sealed.ts";
import { withDirtyTracking } from "./stand-in.ts";

export interface WorkerOptions {
  criu: SealedCriu;
  /** the agent's path of the folder that CRIU works in: images, logs and its cache. It need not be seen in the container */
  imagesDir: string;
  /** PID 1 of the container, as the agent sees it; null runs CRIU in the agent's own namespaces */
  initPid: number | null;
  /** `cgroup.procs` files to join before anything is restored, so that the container's limits hold */
  cgroupProcs: string[];
  /** descriptors of the agent to hand over; they become 4, 5, … in CRIU */
  inherit: number[];
  /** CRIU is told that the kernel tells which pages were written: for a dump with `parentDir`, and only if {@link canLeavePages} */
  leavesPages?: boolean;
  /**
   * Whether CRIU waits for ever in a hook that an agent that died does not answer; else it goes on as if that had failed.
   * A restore goes on even so where only `pre-resume` fails, and the tree would run.
   */
  outlivesAgent: boolean;
}

const RPC_FD = 3;
export const FIRST_INHERITED_FD = 4;
const RESPONSE_BYTES_MAX = 1 << 16;

export class CriuWorker {
  #child: ChildProcess;
  #socket: number;
  /** as CRIU sees it */
  #imagesPath: string;
  #stderr = "";
  #ended: Promise<void>;
  #closed = false;
  #hasDied = false;
  #receiving: Promise<number> = Promise.resolve(0);

  private constructor(child: ChildProcess, socket: number, imagesPath: string) {
    this.#child = child;
    this.#socket = socket;
    this.#imagesPath = imagesPath;
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr = (this.#stderr + text).slice(-4096);
    });
    this.#ended = new Promise((resolve) => child.once("close", () => resolve()));
  }

  /** @throws HoldfastError `CRIU_START`, `CRIU_UNFIT` */
  static async start(options: WorkerOptions): Promise<CriuWorker> {
    const { asFound, tracking } = await kernelCacheOf(options.criu);
    const known = options.leavesPages === true ? (tracking ?? asFound) : asFound;
    // a probe of its own would mount and make folders where the application could get in between
    writeImage(join(options.imagesDir, KERNEL_CACHE), known);
    return CriuWorker.#spawn(options, () => mounts.openTree(options.imagesDir));
  }

  /** @param open makes a descriptor of the folder that CRIU works in, which is closed when CRIU has its own */
  static async #spawn(options: Omit<WorkerOptions, "imagesDir">, open: () => number): Promise<CriuWorker> {
    const { criu, initPid } = options;
    const [ours, theirs] = sock.socketpairSeqpacket();
    let images = -1;
    try {
      images = open();
      // with our end among CRIU's own descriptors, no death of ours is the end of that connection
      const given = [theirs, ...options.inherit, ...(options.outlivesAgent ? [ours] : [])];
      const imagesFd = RPC_FD + given.length;
      const imagesPath = `/proc/self/fd/${imagesFd}`;
      const enter =
        initPid === null
          ? ["/usr/bin/unshare", "-m", "--propagation", "private", `--wd=${imagesPath}`]
          : ["/usr/bin/nsenter", "-t", String(initPid), "-m", "-p", "-u", "-n", `--wd=${imagesPath}`];
      const argv = joinThenExec(options.cgroupProcs, [
        ...enter,
        "--",
        ...criu.command(imagesFd + 1),
        "swrk",
        String(RPC_FD),
      ]);
      const child = spawn("/bin/sh", argv, {
        stdio: ["ignore", "ignore", "pipe", ...given, images, ...criu.descriptors],
        cwd: "/",
        env: SealedCriu.environment,
      });
      await once(child, "spawn");
      return new CriuWorker(child, ours, imagesPath);
    } catch (cause) {
      descriptor.close(ours);
      throw fail("CRIU_START", `CRIU cannot be started: ${messageOf(cause)}`, { cause });
    } finally {
      descriptor.close(theirs);
      if (images !== -1) descriptor.close(images);
    }
  }

  /** Has CRIU try the kernel out, in a mount namespace of its own, and takes what it keeps of that. */
  static async learnKernel(criu: SealedCriu): Promise<KernelCache> {
    // CRIU keeps its cache on a tmpfs only; this one is seen nowhere, and ends with us
    const folder = mounts.newMount("tmpfs");
    const cache = `/proc/self/fd/${folder}/${KERNEL_CACHE}`;
    try {
      const ask = async (): Promise<{ version: string; tracksMemory: boolean }> => {
        const worker = await CriuWorker.#spawn(
          { criu, initPid: null, cgroupProcs: [], inherit: [], outlivesAgent: false },
          () => descriptor.dupCloexec(folder),
        );
        try {
          const { version } = await worker.#ask("VERSION");
          const { tracksMemory } = await worker.request("FEATURE_CHECK");
          return { version, tracksMemory };
        } finally {
          await worker.close();
        }
      };
      const { version, tracksMemory } = await ask();
      const asFound = readImage(cache);
      const known = { asFound, tracksMemory, tracking: null };
      const tracking = tracksMemory || !canClearReferences() ? null : withDirtyTracking(asFound, version);
      if (tracking === null) return known;
      writeImage(cache, tracking);
      // only if CRIU itself reads there what is meant
      return (await ask()).tracksMemory ? { ...known, tracking } : known;
    } finally {
      descriptor.close(folder);
    }
  }

  /** PID of the process that was started (nsenter waiting for CRIU, or CRIU itself). */
  get pid(): number {
    return this.#child.pid ?? -1;
  }

  /** It has ended in the middle of its request, and not by {@link close}. */
  get hasDied(): boolean {
    return this.#hasDied;
  }

  /**
   * Sends the one request of this worker and answers CRIU's hooks until the response.
   * A hook that throws makes CRIU give up and undo; the error thrown is the hook's.
   * @throws HoldfastError `CRIU_FAILED` when CRIU says no, `CRIU_DIED` when it ends without an answer
   */
  async request(
    type: RequestType,
    options?: Omit<CriuOptions, "imagesDir">,
    onHook: (hook: string) => Promise<void> = async () => {},
  ): Promise<CriuResponse> {
    const request = options === undefined ? {} : { options: { ...options, imagesDir: this.#imagesPath } };
    await this.#send(encodeRequest({ type, ...request }));
    let hookError: unknown = null;
    const orHookError = (error: unknown): never => {
      throw hookError ?? error;
    };
    for (;;) {
      const response = await this.#receive().catch(orHookError);
      if (response.type === NOTIFY_TYPE) {
        if (hookError === null)
          await onHook(response.notify ?? "").catch((error: unknown) => (hookError = error));
        await this.#send(encodeRequest({ type: "NOTIFY", notifySuccess: hookError === null })).catch(
          orHookError,
        );
        continue;
      }
      if (hookError !== null) throw hookError;
      if (!response.success) {
        const detail = response.message === "" ? `errno ${response.errno}` : response.message;
        throw fail("CRIU_FAILED", `CRIU ${type} failed: ${detail}`);
      }
      return response;
    }
  }

  /** Ends the worker by closing its socket, and waits for it. Safe to call twice. */
  async close(): Promise<void> {
    if (!this.#closed) {
      this.#closed = true;
      sock.shutdown(this.#socket, sock.SHUT_RDWR);
      await this.#receiving;
      descriptor.close(this.#socket);
    }
    await this.#ended;
  }

  /** Before the one request. */
  async #ask(type: RequestType): Promise<CriuResponse> {
    await this.#send(encodeRequest({ type, keepOpen: true }));
    return await this.#receive();
  }

  /** @throws HoldfastError `CRIU_DIED` */
  async #send(message: Buffer): Promise<void> {
    try {
      sock.send(this.#socket, message, sock.MSG_NOSIGNAL);
    } catch (cause) {
      throw await this.#died(cause);
    }
  }

  /** @throws HoldfastError `CRIU_DIED` */
  async #receive(): Promise<CriuResponse> {
    const buffer = Buffer.alloc(RESPONSE_BYTES_MAX);
    const received = sock.recvAsync(this.#socket, buffer);
    this.#receiving = received.catch(() => 0);
    // it ends with ECONNRESET where it has not read what it was sent
    const length = await received.catch(async (cause: unknown) => {
      throw await this.#died(cause);
    });
    if (length === 0) throw await this.#died();
    return decodeResponse(buffer.subarray(0, length));
  }

  async #died(cause?: unknown): Promise<HoldfastError> {
    this.#hasDied = !this.#closed;
    await this.#ended;
    const { signalCode } = this.#child; // nsenter(1) ends as what it has started
    if (signalCode !== null) return fail("CRIU_DIED", `CRIU was killed (${signalCode})`, { cause });
    const lastLine = this.#stderr.trim().split("\n").at(-1) ?? "";
    return fail("CRIU_DIED", `CRIU ended without an answer${lastLine === "" ? "" : `: ${lastLine}`}`, {
      cause,
    });
  }
}

export interface KernelCache {
  asFound: Buffer;
  /** the kernel tells which pages were written */
  tracksMemory: boolean;
  /** as if the kernel told which pages were written (`stand-in.ts`); null: it does, or that cannot be done with this CRIU, or here */
  tracking: Buffer | null;
}

const caches = new WeakMap<SealedCriu, Promise<KernelCache>>();

/** What CRIU knows of this boot's kernel, learnt once a process. @throws HoldfastError `CRIU_FAILED`, `CRIU_DIED`, `CRIU_START` */
export function kernelCacheOf(criu: SealedCriu): Promise<KernelCache> {
  const known = caches.get(criu);
  if (known !== undefined) return known;
  const learning = CriuWorker.learnKernel(criu);
  caches.set(criu, learning);
  learning.catch(() => caches.delete(criu)); // the next one tries again
  return learning;
}

/** Whether CRIU can be had to leave pages where they are (`stand-in.ts`). @throws HoldfastError as {@link kernelCacheOf} */
export async function canLeavePages(criu: SealedCriu): Promise<boolean> {
  return (await kernelCacheOf(criu)).tracking !== null;
}

/** CRIU does so after a dump that builds on another, and ends where the kernel refuses (proc(5), clear_refs). */
function canClearReferences(): boolean {
  try {
    writeFileSync("/proc/self/clear_refs", "4");
    return true;
  } catch {
    return false;
  }
}
