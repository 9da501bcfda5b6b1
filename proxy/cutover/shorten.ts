/**
 * Just before the hold, while everything passes: queues that have grown because bytes pass fast are made short again. They empty
 * into clients that read; in the pause they would be carried.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { ShortenResult } from "#proxy/contract/commands.ts";
import { TcpLeg } from "#proxy/stream/tcp-leg.ts";
import type { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";

const POLL_MS = 1;
/** What has not passed by then waits for a client that does not read any more. */
const SHORTEN_MS_MAX = 50;

/** Of the legs to the application: their window is what it may send before the hold. Each grows again by itself. */
export async function shorten(proxy: WorkloadProxy): Promise<ShortenResult> {
  const deadlineMs = performance.now() + SHORTEN_MS_MAX;
  const shortened: { leg: TcpLeg; bytes: number }[] = [];
  for (const { upstream: leg } of proxy.sessions.values()) {
    const bytes = leg instanceof TcpLeg ? leg.shorten() : null;
    if (bytes !== null) shortened.push({ leg: leg as TcpLeg, bytes });
  }
  for (let long = shortened; ; ) {
    long = long.filter(({ leg, bytes }) => leg.unreadBytes() > bytes);
    if (long.length === 0 || performance.now() >= deadlineMs)
      return { shortened: shortened.length, long: long.length };
    await delay(POLL_MS);
  }
}
