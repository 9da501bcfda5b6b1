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

/** Runs until SIGTERM or SIGINT; then accepts nobody, and ends when its sessions have, or have had their time. */
export async function runGateway(config: GatewayFile, options: { logLevel: string }): Promise<void> {
  const log = pino({ level: options.logLevel, base: { gateway: config.name } }, logDestination());
  const { store, admin, keySource, services } = config;
  let keys = config.linkKeys;
  let problem: string | null = null;
  const keysOf = (workload: string): SharedKeys => keys.get(workload) as SharedKeys;
  const running = await startGateway({ config, keysOf, store, admin, log, isTold: services === null });
  /** A file that is damaged changes nothing, and is told once. */
  const readAgain = (): void => {
    try {
      const next = readLinkKeys(keySource, [...keys.keys()]);
      problem = null;
      if (isSame(keys, next)) return;
      keys = next;
      running.useKeys(keysOf);
      log.info("the key file was read again");
    } catch (error) {
      const now = `${keySource.path} cannot be used, the keys before it are: ${messageOf(error)}`;
      if (now !== problem) log.error(now);
      problem = now;
    }
  };
  const watch = new ChangeWatch([keySource.path], readAgain);
  readAgain(); // what has changed since the start
  process.on("SIGHUP", readAgain);
  const lead = (listeners: GatewayListener[]): void => {
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
  const follow = services === null ? null : followServices({ ...services, lead, log }, process.env);
  const [signal] = await Promise.race([once(process, "SIGTERM"), once(process, "SIGINT")]);
  log.info({ signal }, "told to end");
  watch.close();
  await follow?.close();
  await running.end();
}

function isSame(one: ReadonlyMap<string, SharedKeys>, other: ReadonlyMap<string, SharedKeys>): boolean {
  return [...one].every(([workload, keys]) => {
    const others = other.get(workload) ?? [];
    return keys.length === others.length && keys.every((key, index) => others[index]?.equals(key));
  });
}
