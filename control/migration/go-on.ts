/**
 * The application goes on: at the target when it is released, at the source when a move is rolled back. Everything before was silent.
 * May be repeated.
 */
import { rm } from "node:fs/promises";
import type { Logger } from "pino";
import { messageOf } from "#proxy/contract/errors.ts";
import type { WorkloadConfig } from "../config/config.ts";
import type { Vip } from "../network/vip.ts";
import type { Freezer } from "../runtime/freezer.ts";
import { innerPid, treesBelow } from "../runtime/processes.ts";
import type { Sandbox } from "../runtime/runtime.ts";
import type { Moving } from "./moving.ts";
import { takeBackOwnSockets } from "./own-sockets.ts";
import { endRepair, unshieldOutbound } from "./sockets.ts";
import { takeEach } from "./steps.ts";
import { takeBackTerminals } from "./terminals.ts";
import { putBack } from "./watches.ts";

/** Whose application it is. */
export interface GoingOn {
  readonly name: string;
  readonly config: WorkloadConfig;
  readonly context: { readonly log: Logger };
  readonly container: Sandbox;
  readonly journal: { readonly moving: Moving | null };
  readonly vip: Vip | null;
  freezer(): Promise<Freezer | null>;
  readonly keeper: { goOn(command: "release" | "rollback", epoch: number): Promise<void> };
}

/**
 * With its legs, at the target.
 * @param onAlive called when clients wait no longer; who else may connect is let in after it, which takes tens of milliseconds (nft(8))
 */
export async function comeAlive(host: GoingOn, epoch: number, onAlive = (): void => {}): Promise<void> {
  // only now: an address on two nodes answers for both, and a segment that finds no leg is answered with RST
  host.vip?.add();
  host.vip?.announce();
  await Promise.all([continueTree(host), host.keeper.goOn("release", epoch)]);
  onAlive();
  await host.container.openDoor().catch((error: unknown) => warn(host, "let others connect", error));
}

/** Undoes whatever a move has done to the application and its sessions at the source. */
export async function undoMove(host: GoingOn, epoch: number): Promise<void> {
  const { container, vip, keeper } = host;
  const images = container.hostPath("images");
  const pids = (): Promise<number[]> => treesBelow(container.init.pid);
  // sessions may be lost by one that fails; the others, and the application, must not be
  await takeEach(
    {
      "take sockets back": async () => endRepair(await pids(), images),
      "take its own sockets back": async () => takeBackOwnSockets(images, await pids()),
      "put back what waits in terminals": async () => takeBackTerminals(images, await pids()),
      "take the address back": () => vip?.add(),
      "let kept connections hear": () => hearOutbound(host),
      "let the proxy go on": () => keeper.goOn("rollback", epoch),
      "announce the address": () => vip?.announce(),
      "put watches on files back": () => putBackWatches(host),
      "let the application go on": () => continueTree(host),
      "let others connect": () => container.openDoor(),
      "remove images": () => rm(images, { recursive: true, force: true }),
    },
    (what, error) => warn(host, what, error),
  );
}

/** Connections of the application's own that were about to go along hear their peers again. */
async function hearOutbound({ config, container }: GoingOn): Promise<void> {
  if (config.outbound !== "keep" || config.vip === null) return;
  const pids = await treesBelow(container.init.pid);
  if (pids.length > 0) await unshieldOutbound(pids, config.vip.address);
}

async function putBackWatches(host: GoingOn): Promise<void> {
  const onError = (error: unknown): void => warn(host, "watches", error);
  const states = host.journal.moving?.watches ?? [];
  if (states.length > 0) await putBack(states, host.container, await host.freezer(), onError).catch(onError);
}

/** Also what is left of one whose root was killed meanwhile: it would stand still for ever, and nobody would see that it has ended. */
async function continueTree(host: GoingOn): Promise<void> {
  const pids = await treesBelow(host.container.init.pid);
  if (pids.length === 0) host.context.log.error({ workload: host.name }, "there is no application to go on");
  const freezer = await host.freezer();
  if (freezer !== null) return freezer.thaw();
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
