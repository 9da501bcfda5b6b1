/**
 * The application goes on: at the target when it is released, at the source when a move is rolled back. Everything before was silent.
 * May be repeated.
 */
import { existsSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import type { Logger } from "pino";
import { messageOf } from "#proxy/contract/errors.ts";
import type { WorkloadConfig } from "../config/config.ts";
import type { Vip } from "../network/vip.ts";
import type { Freezer } from "../runtime/freezer.ts";
import { innerPid, processState, treesBelow } from "../runtime/processes.ts";
import type { Sandbox } from "../runtime/runtime.ts";
import type { Moving } from "./moving.ts";
import { FILE as OWN_SOCKETS, takeBackOwnSockets } from "./own-sockets.ts";
import { endRepair, unshieldOutbound } from "./sockets.ts";
import { takeEach, untilDone } from "./steps.ts";
import { FILE as TERMINALS, takeBackTerminals } from "./terminals.ts";
import { Timeline } from "./timeline.ts";
import { putBack, type Standing } from "./watches.ts";

/** Whose application it is. */
export interface GoingOn {
  readonly name: string;
  readonly config: WorkloadConfig;
  readonly context: { readonly log: Logger };
  readonly container: Sandbox;
  readonly journal: { readonly moving: Moving | null };
  readonly vip: Vip | null;
  record(patch: { moving: Moving }): void;
  /** @throws HoldfastError `AGENT_CLOSING` */
  throwIfClosed(): void;
  freezer(): Promise<Freezer | null>;
  readonly keeper: { goOn(command: "release" | "rollback", epoch: number): Promise<void> };
}

/**
 * With its legs, at the target.
 * @param timeline of the move, in which it is told
 * @param onAlive called when clients wait no longer; who else may connect is let in after it, which takes tens of milliseconds (nft(8))
 */
export async function comeAlive(
  host: GoingOn,
  epoch: number,
  onAlive = (): void => {},
  timeline = new Timeline(),
): Promise<void> {
  const fromMs = performance.now();
  // only now: an address on two nodes answers for both, and a segment that finds no leg is answered with RST
  host.vip?.add();
  host.vip?.announce();
  if (host.vip !== null) timeline.span("target agent", "adds the address", fromMs);
  await Promise.all([
    timeline.during("target agent", "lets the tree go on", () => continueTree(host)),
    timeline.during("target proxy", "lets clients go on", () => host.keeper.goOn("release", epoch)),
  ]);
  onAlive();
  await host.container.openDoor().catch((error: unknown) => warn(host, "let others connect", error));
}

/** Undoes whatever a move has done to the application and its sessions at the source. */
export async function undoMove(host: GoingOn, epoch: number): Promise<void> {
  const { container, vip, keeper } = host;
  const images = container.hostPath("images");
  const pids = (): Promise<number[]> => treesBelow(container.init.pid);
  let standing: Standing = "runs";
  const back = new Set<string>();
  const failed = (what: string, error: unknown): void => warn(host, what, error);
  // sessions may be lost by one that fails; the others, and the application, must not be
  await takeEach(
    {
      "stop what is given something back": async () => {
        standing = await standStill(host, images);
      },
      "take sockets back": async () => endRepair(await pids(), images),
      "take its own sockets back": async () => takeBackOwnSockets(images, await pids()),
      "put back what waits in terminals": async () => takeBackTerminals(images, await pids(), back),
      "take the address back": () => vip?.add(),
      "let kept connections hear": () => hearOutbound(host),
      "let the proxy go on": () => keeper.goOn("rollback", epoch),
      "announce the address": () => vip?.announce(),
      "put watches on files back": () => putBackWatches(host, standing),
    },
    failed,
  );
  await untilDone(
    () => continueTree(host),
    (error) => failed("let the application go on", error),
    () => host.throwIfClosed(),
  );
  await takeEach(
    {
      "let others connect": () => container.openDoor(),
      "remove images": () => rm(images, { recursive: true, force: true }),
    },
    failed,
  );
}

/** Connections of the application's own that were about to go along hear their peers again. */
async function hearOutbound({ config, container }: GoingOn): Promise<void> {
  if (config.outbound !== "keep" || config.vip === null) return;
  const pids = await treesBelow(container.init.pid);
  if (pids.length > 0) await unshieldOutbound(pids, config.vip.address);
}

/**
 * CRIU lets go of a tree that it cannot dump, and of one whose agent has ended: it runs, and could read, write or close what is being put back.
 * @returns how it stands from now on. Where there is nothing to put back it is left alone
 */
async function standStill(host: GoingOn, images: string): Promise<Standing> {
  const { moving } = host.journal;
  const hasTaken = [OWN_SOCKETS, TERMINALS].some((file) => existsSync(join(images, file)));
  if (!hasTaken && (moving === null || moving.watches.length === 0)) return "runs";
  const freezer = await host.freezer();
  if (freezer === null) {
    const root = await host.container.applicationRoot();
    return root !== null && (await processState(root)) === "T" ? "stood" : "runs";
  }
  if (freezer.isFrozen) return moving?.ran === true ? "ran" : "stood";
  // written down first: the next agent finds it frozen
  if (moving !== null) host.record({ moving: { ...moving, ran: true } });
  await freezer.freeze();
  return "ran";
}

async function putBackWatches(host: GoingOn, standing: Standing): Promise<void> {
  const onError = (error: unknown): void => warn(host, "watches", error);
  const states = host.journal.moving?.watches ?? [];
  if (states.length > 0) await putBack(states, host.container, standing, onError).catch(onError);
}

/** Also what is left of one whose root was killed meanwhile: it would stand still for ever, and nobody would see that it has ended. */
async function continueTree(host: GoingOn): Promise<void> {
  if (!(await host.container.isAlive())) return; // nothing of it is left
  const freezer = await host.freezer();
  freezer?.thaw();
  const pids = await treesBelow(host.container.init.pid);
  if (pids.length === 0) host.context.log.error({ workload: host.name }, "there is no application to go on");
  if (freezer !== null) return;
  // CRIU has used SIGSTOP. Children first: a parent that goes on early sees that they are stopped.
  const stopped = new Set(host.journal.moving?.stopped ?? []);
  for (const pid of pids.reverse()) if (!stopped.has((await innerPid(pid)) ?? -1)) continueProcess(pid);
}

function continueProcess(pid: number): void {
  try {
    process.kill(pid, "SIGCONT");
  } catch {
    // it was killed by somebody else: nothing to continue
  }
}

function warn({ name, context }: GoingOn, what: string, error: unknown): void {
  context.log.warn({ workload: name, what, reason: messageOf(error) }, `${what} failed; continuing`);
}
