/** The process of a gateway: its log, its keys as their file changes, its end by signals. The gateway itself is `proxy/run-gateway.ts`. */
import { once } from "node:events";
import { pino } from "pino";
import { messageOf } from "#proxy/contract/errors.ts";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import { startGateway } from "#proxy/run-gateway.ts";
import { ChangeWatch } from "../config/change-watch.ts";
import { type GatewayFile, workloadsOf } from "../config/gateway.ts";
import { readLinkKeys } from "../config/link-key-file.ts";

/** Runs until SIGTERM or SIGINT; then accepts nobody, and ends when its sessions have, or have had their time. */
export async function runGateway(config: GatewayFile, options: { logLevel: string }): Promise<void> {
  const log = pino({ level: options.logLevel, base: { gateway: config.name } }, pino.destination(2));
  const { store, admin, keySource } = config;
  const workloads = workloadsOf(config.listeners);
  let keys = config.linkKeys;
  let problem: string | null = null;
  const running = await startGateway({ config, linkKeys: keys, store, admin, log });
  /** A file that is damaged changes nothing, and is told once. */
  const readAgain = (): void => {
    try {
      const next = readLinkKeys(keySource, workloads);
      problem = null;
      if (isSame(keys, next)) return;
      keys = next;
      running.useKeys(keys);
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
  const [signal] = await Promise.race([once(process, "SIGTERM"), once(process, "SIGINT")]);
  log.info({ signal }, "told to end");
  watch.close();
  await running.end();
}

function isSame(one: ReadonlyMap<string, SharedKeys>, other: ReadonlyMap<string, SharedKeys>): boolean {
  return [...one].every(([workload, keys]) => {
    const others = other.get(workload) ?? [];
    return keys.length === others.length && keys.every((key, index) => others[index]?.equals(key));
  });
}
