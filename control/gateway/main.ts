/**
 * The process of a gateway: its log, its keys as their file changes, in a cluster the Services that the controller tells of, its end by
 * signals. The gateway itself is `proxy/run-gateway.ts`.
 */
import { once } from "node:events";
import { pino } from "pino";
import { messageOf } from "#proxy/contract/errors.ts";
import type { GatewayListener } from "#proxy/contract/gateway.ts";
import { logDestination } from "#proxy/contract/log-destination.ts";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import { startGateway } from "#proxy/run-gateway.ts";
import { ChangeWatch } from "../config/change-watch.ts";
import { type GatewayFile, workloadsOf } from "../config/gateway.ts";
import { readLinkKeys } from "../config/link-key-file.ts";
import { followServices } from "./services.ts";

/** what the controller tells could not be done: its next word may be days away */
const LEAD_AGAIN_MS = 2_000;

/** Runs until SIGTERM or SIGINT; then accepts nobody, and ends when its sessions have, or have had their time. */
export async function runGateway(config: GatewayFile, options: { logLevel: string }): Promise<void> {
  const log = pino({ level: options.logLevel, base: { gateway: config.name } }, logDestination());
  const { store, admin, keySource, services } = config;
  let keys = config.linkKeys;
  let problem: string | null = null;
  const keysOf = (workload: string): SharedKeys => keys.get(workload) as SharedKeys;
  const toEnd = Promise.race([once(process, "SIGTERM"), once(process, "SIGINT")]);
  const running = await startGateway({ config, keysOf, store, admin, log, isTold: services === null });
  /** A file that is damaged changes nothing, and is told once. */
  const readAgain = (): void => {
    try {
      const next = readLinkKeys(keySource, [...keys.keys()]);
      problem = null;
      if (!isSame(keys, next)) {
        keys = next;
        running.useKeys(keysOf);
        log.info("the key file was read again");
      }
    } catch (error) {
      const now = `${keySource.path} cannot be used, the keys before it are: ${messageOf(error)}`;
      if (now !== problem) log.error(now);
      problem = now;
      return;
    }
    if (told !== null) lead(told);
  };
  /** what was told last, for as long as it cannot be done; and why, which is told once */
  let told: GatewayListener[] | null = null;
  let leadProblem: string | null = null;
  let leadAgain: NodeJS.Timeout | undefined;
  const lead = (listeners: GatewayListener[]): void => {
    told = listeners;
    clearTimeout(leadAgain);
    try {
      use(listeners);
      told = leadProblem = null;
    } catch (error) {
      const reason = messageOf(error);
      if (reason !== leadProblem)
        log.error({ reason }, "whom clients are led to cannot be changed; tried again soon");
      leadProblem = reason;
      leadAgain = setTimeout(() => lead(listeners), LEAD_AGAIN_MS).unref();
    }
  };
  const use = (listeners: GatewayListener[]): void => {
    const workloads = workloadsOf(listeners);
    const fresh = readLinkKeys(
      keySource,
      workloads.filter((workload) => !keys.has(workload)),
    );
    keys = new Map([...keys, ...fresh]);
    running.use(listeners);
    // those that nobody is led to any more may have sessions
    const there = new Set(running.workloads);
    keys = new Map([...keys].filter(([workload]) => there.has(workload)));
  };
  const watch = new ChangeWatch([keySource.path], readAgain);
  readAgain(); // what has changed since the start
  process.on("SIGHUP", readAgain);
  const follow = services === null ? null : followServices({ ...services, lead, log }, process.env);
  const [signal] = await toEnd;
  log.info({ signal }, "told to end");
  await follow?.close();
  // links that are dialled while it drains are dialled with the keys of then; and a signal that nobody waits for would end it
  await running.end();
  watch.close();
  process.off("SIGHUP", readAgain);
  clearTimeout(leadAgain);
}

function isSame(one: ReadonlyMap<string, SharedKeys>, other: ReadonlyMap<string, SharedKeys>): boolean {
  return [...one].every(([workload, keys]) => {
    const others = other.get(workload) ?? [];
    return keys.length === others.length && keys.every((key, index) => others[index]?.equals(key));
  });
}
