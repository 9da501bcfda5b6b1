/** The process of a gateway: its log, its keys as their file changes, its end by signals. The gateway itself is `proxy/run-gateway.ts`. */
import { once } from "node:events";
import { pino } from "pino";
import { startGateway } from "#proxy/run-gateway.ts";
import { ChangeWatch } from "../agent/change-watch.ts";
import { KeyRing } from "../agent/key-ring.ts";
import type { GatewayFile } from "../config/gateway.ts";

/** Runs until SIGTERM or SIGINT; then accepts nobody, and ends when its sessions have, or have had their time. */
export async function runGateway(config: GatewayFile, options: { logLevel: string }): Promise<void> {
  const log = pino({ level: options.logLevel, base: { gateway: config.name } }, pino.destination(2));
  const ring = new KeyRing(config.keys);
  const { store, admin } = config;
  const running = await startGateway({ config, keys: ring.keys, store, admin, log });
  const readAgain = (): void => {
    const news = ring.readAgain(config.keyFile);
    if (news === "damaged") log.error(ring.problem);
    else if (news !== null) log.info({ keys: ring.ids }, "the key file was read again");
    if (news === "changed") running.useKeys(ring.keys);
  };
  const watch = new ChangeWatch([config.keyFile], readAgain);
  readAgain(); // what has changed since the start
  process.on("SIGHUP", readAgain);
  const [signal] = await Promise.race([once(process, "SIGTERM"), once(process, "SIGINT")]);
  log.info({ signal }, "told to end");
  watch.close();
  await running.end();
}
