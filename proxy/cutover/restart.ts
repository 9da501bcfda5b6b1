/**
 * A restart in place: `pause` keeps everything new from the application and cuts its connections once what is under way is
 * answered; `resume` connects whoever waits to the application's next instance.
 *
 * They are cut, not left to the application: one that shuts down in order says goodbye (Close 1001, `Connection: close`), and
 * that is not for clients who are to stay.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { PauseResult, ResumeResult } from "#proxy/contract/commands.ts";
import type { SessionReplay } from "#proxy/replay/session-replay.ts";
import type { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";

const POLL_MS = 1;
/**
 * looks, about 100 ms, in which nobody is answered: the messages that are left may never be. Not a time: a look that comes late,
 * since we were not given a CPU, comes before the answers that have arrived meanwhile are read
 */
const SILENT_LOOKS_MAX = 100;

/** Call with the role already `paused`. */
export async function pause(proxy: WorkloadProxy, drainMs: number): Promise<PauseResult> {
  proxy.heldAtMs = performance.now();
  proxy.unavailable.end();
  proxy.unavailable.begin();
  const startMs = performance.now();
  for (const replay of replays(proxy)) replay.quiesce();
  // Nothing new reaches the application, so that this only falls.
  let least = Number.POSITIVE_INFINITY;
  let silentLooks = 0;
  while (performance.now() - startMs < drainMs) {
    const { requests, messages } = unanswered(proxy);
    if (requests + messages === 0) break;
    // One that answers others is not silent, only slow: a message that it was given may be lost with it.
    silentLooks = requests + messages < least ? 0 : silentLooks + 1;
    least = Math.min(least, requests + messages);
    if (requests === 0 && silentLooks >= SILENT_LOOKS_MAX) break;
    await delay(POLL_MS);
  }
  let requestsInFlight = 0;
  let sessions = 0;
  for (const session of [...proxy.sessions.values()]) {
    const { filter } = session;
    if (filter === null || filter.replay === null) continue;
    requestsInFlight += filter.info.requestsInFlight;
    if (filter.cut()) sessions++;
  }
  for (const availability of proxy.availabilities) availability.lost();
  return { sessions, requestsInFlight };
}

/** Call with the role already `owner`. Answers when nobody waits any more, or is known to wait in vain. */
export async function resume(proxy: WorkloadProxy): Promise<ResumeResult> {
  for (const availability of proxy.availabilities) availability.look();
  for (const replay of replays(proxy)) replay.unquiesce();
  const deadlineMs = performance.now() + proxy.config.limits.unavailableMsMax;
  for (;;) {
    const waits =
      proxy.availabilities.some((availability) => availability.isAbsent && !availability.isGivenUp) ||
      replays(proxy).some((replay) => replay.isPending && !replay.isGivenUp);
    if (!waits || proxy.role !== "owner" || performance.now() >= deadlineMs) break;
    await delay(POLL_MS);
  }
  // Whoever waits in vain is refused before this is answered, however late it has become.
  for (const availability of proxy.availabilities) availability.look();
  return { sessions: replays(proxy).length, ...proxy.unavailable.end() };
}

function unanswered(proxy: WorkloadProxy): { requests: number; messages: number } {
  const counts = { requests: 0, messages: 0 };
  for (const replay of replays(proxy))
    counts[replay.isWebSocket ? "messages" : "requests"] += replay.unanswered;
  return counts;
}

function replays(proxy: WorkloadProxy): SessionReplay[] {
  const found: SessionReplay[] = [];
  for (const { filter } of proxy.sessions.values())
    if (filter !== null && filter.replay !== null) found.push(filter.replay);
  return found;
}
