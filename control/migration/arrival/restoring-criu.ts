/** The CRIU that will restore, waiting in the container, with all that it inherits: closed together, whatever comes of it. */
import { closeSync } from "node:fs";
import { fail } from "#proxy/contract/error-codes.ts";
import type { CriuResponse, InheritFd } from "../../criu/protocol.ts";
import { type SemaphoreEventfd, SpareSemaphores } from "../../criu/semaphores.ts";
import type { FoundCriu } from "../../criu/tool.ts";
import { CriuWorker, FIRST_INHERITED_FD, type WorkerOptions } from "../../criu/worker.ts";
import type { Freezer } from "../../runtime/freezer.ts";
import { openOutput } from "../../runtime/inside.ts";
import { childrenOf, innerPid } from "../../runtime/processes.ts";
import type { Sandbox } from "../../runtime/runtime.ts";
import { probeCriu } from "../probe-criu.ts";
import { aheadOf, besides, isInTheWay, neededNumbers, numbersMax, setLastNumber } from "../tree-numbers.ts";
import { givenUp } from "./given-up.ts";

/** eventfds that the application may have made since the move was prepared */
const SPARE_SEMAPHORES = 8;
/** the standby's own output, standard output and error: what the restored application writes goes on into this node's log */
const OUTPUTS = [1, 2] as const;
const FIRST_SEMAPHORE_FD = FIRST_INHERITED_FD + OUTPUTS.length;

/** What the application had when the move was prepared. */
export interface Foreseen {
  /** as numbered in its container */
  highestTid: number;
  /** eventfds with EFD_SEMAPHORE */
  semaphores: number;
}

type RestoreOptions = Omit<NonNullable<Parameters<CriuWorker["request"]>[1]>, "inheritFds">;

export class RestoringCriu {
  readonly #container: Sandbox;
  readonly #inherited: Inherited;
  readonly #options: () => Promise<WorkerOptions>;
  #worker: CriuWorker;
  #isClosed = false;

  private constructor(
    container: Sandbox,
    inherited: Inherited,
    options: () => Promise<WorkerOptions>,
    worker: CriuWorker,
  ) {
    this.#container = container;
    this.#inherited = inherited;
    this.#options = options;
    this.#worker = worker;
  }

  /** @throws HoldfastError as {@link probeCriu}, of its first look at the kernel */
  static async start(container: Sandbox, criu: FoundCriu, foreseen: Foreseen): Promise<RestoringCriu> {
    const { pid } = container.init;
    await setLastNumber(pid, aheadOf(foreseen.highestTid, await numbersMax(pid)));
    const inherited = new Inherited(container, foreseen.semaphores + SPARE_SEMAPHORES);
    const options = async (): Promise<WorkerOptions> => ({
      criu: criu.sealed(),
      imagesDir: container.hostPath("images"),
      initPid: pid,
      cgroupProcs: await container.cgroupProcs(),
      inherit: inherited.fds,
      outlivesAgent: true,
    });
    try {
      await probeCriu(await options());
      return new RestoringCriu(container, inherited, options, await CriuWorker.start(await options()));
    } catch (error) {
      inherited.close();
      throw error;
    }
  }

  /** of the process that started CRIU and waits for it outside of the container */
  get pid(): number {
    return this.#worker.pid;
  }

  /** The tree has other numbers by now than when the move was prepared, and CRIU may have one of them: then it starts anew. */
  async stepAside(): Promise<void> {
    const needed = neededNumbers(this.#container.hostPath("images"));
    const { pid } = this.#container.init;
    if (!(await isInTheWay(this.#worker.pid, needed))) return;
    await this.#worker.close();
    await setLastNumber(pid, besides(needed, await numbersMax(pid)));
    this.#throwIfClosed();
    const worker = await CriuWorker.start(await this.#options());
    this.#worker = worker;
    if (this.#isClosed) await worker.close(); // meanwhile
  }

  /** Of the images, which change. @throws HoldfastError `SEMAPHORES_MANY` */
  takeSemaphores(semaphores: SemaphoreEventfd[]): InheritFd[] {
    const images = this.#container.hostPath("images");
    return this.#inherited.semaphores.install(images, semaphores, FIRST_SEMAPHORE_FD);
  }

  /**
   * Its one request.
   * @param outputPipes what the source calls the pipes that the application's output went into
   * @throws HoldfastError as {@link CriuWorker.request}
   */
  async restore(
    options: RestoreOptions,
    { outputPipes, semaphores }: { outputPipes: string[]; semaphores: InheritFd[] },
    onHook: (hook: string) => Promise<void>,
  ): Promise<CriuResponse> {
    this.#throwIfClosed();
    const inheritFds = [
      ...outputPipes.map((key, at) => ({ key, fd: FIRST_INHERITED_FD + at })),
      ...semaphores,
    ];
    return await this.#worker.request("RESTORE", { ...options, inheritFds }, onHook);
  }

  /**
   * The root of what it has made so far: until it ends it is the parent of that, and of helpers of its own.
   * @param innerRoot as numbered in the container
   * @throws HoldfastError `RESTORED_GONE`
   */
  async madeRoot(innerRoot: number): Promise<number> {
    const [criu] = await childrenOf(this.#worker.pid);
    for (const pid of criu === undefined ? [] : await childrenOf(criu))
      if ((await innerPid(pid)) === innerRoot) return pid;
    throw fail("RESTORED_GONE", `CRIU has not made process ${innerRoot}`);
  }

  /** When the root of the tree is in the container's control group, and its children will be: CRIU itself need not be. */
  async spare(freezer: Freezer): Promise<void> {
    const { pid } = this.#worker;
    await freezer.spare([pid, ...(await childrenOf(pid))]);
  }

  /** Resolves when it has gone: the tree is a child of the container's init from then on. May be repeated. */
  async end(): Promise<void> {
    await this.#worker.close();
  }

  /** Ends it, and closes what it could inherit. May be repeated. */
  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#worker.close();
    this.#inherited.close();
  }

  #throwIfClosed(): void {
    if (this.#isClosed) throw givenUp();
  }
}

/** Descriptors that CRIU gets. */
class Inherited {
  readonly semaphores: SpareSemaphores;
  readonly #outputs: number[] = [];

  constructor(container: Sandbox, semaphores: number) {
    this.semaphores = new SpareSemaphores(semaphores);
    try {
      for (const fd of OUTPUTS) this.#outputs.push(openOutput(container, fd));
    } catch (error) {
      this.close();
      throw error;
    }
  }

  get fds(): number[] {
    return [...this.#outputs, ...this.semaphores.fds];
  }

  /** May be repeated. */
  close(): void {
    for (const fd of this.#outputs.splice(0)) closeSync(fd);
    this.semaphores.close();
  }
}
